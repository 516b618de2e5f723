"""qmp_mtsac.py: heads on shared trunks, one head for all tasks, and PCGrad on the trunks."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import qmp_mtsac
from qmp_mtsac import Actor, Agent, Args, Batch, Critic, project_conflicts, squash, step_optimizer, update

N, B, O, A, HIDDEN = 3, 6, 4, 2, (16, 8)
F64 = torch.float64


def plain(trunk, heads, s, i):
    """Trunk s and head i as plain `torch.nn` modules that share the memory of nothing."""
    layers = []
    for layer, slot in [*((m, s) for m in trunk[0] if hasattr(m, "weight")), (heads, i)]:
        linear = nn.Linear(layer.weight.shape[1], layer.weight.shape[2], dtype=layer.weight.dtype)
        with torch.no_grad():
            linear.weight.copy_(layer.weight[slot].T)
            linear.bias.copy_(layer.bias[slot, 0])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-2]), layers[-2]


@pytest.mark.parametrize("heads", [N, 1])
def test_forward_is_trunk_and_head(heads):
    torch.manual_seed(0)
    actor, qf = Actor(N, O, A, HIDDEN, heads), Critic(N, O, A, HIDDEN, heads)
    assert len(actor.heads.weight) == heads and len(qf.heads.weight) == 2 * heads
    obs, actions = torch.randn(N, B, O), torch.randn(N, B, A)
    mean, log_std = actor(obs)
    values = qf(obs, actions)
    assert mean.shape == log_std.shape == (N, B, A) and values.shape == (2, N, B)
    for i in range(N):
        own = i if heads == N else 0
        trunk, head = plain(actor.trunk, actor.heads, 0, own)
        assert_close(torch.cat([mean[i], log_std[i]], -1), head(trunk(obs[i])))
        for s in range(2):
            trunk, head = plain(qf.trunk, qf.heads, s, s * heads + own)
            assert_close(values[s, i], head(trunk(torch.cat([obs[i], actions[i]], -1))).squeeze(-1))


@pytest.mark.parametrize("heads", [N, 1])
def test_all_policies_in_the_same_states_take_one_pass_of_the_trunk(heads):
    torch.manual_seed(0)
    actor, obs, calls = Actor(N, O, A, HIDDEN, heads), torch.randn(N, O), []
    expected = actor(obs.expand(N, N, O))
    actor.trunk.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
    for got, want in zip(actor(obs.unsqueeze(0)), expected, strict=True):
        assert got.shape == (N, N, A)
        assert_close(got, want)
    assert calls == [(1, N, O)]


class PlainAgent:
    """Multi-head SAC with plain modules and a loss for each task; starts from an agent of the script.

    With one head for all tasks it is a single SAC agent, which learns from the tasks' transitions together.
    """

    def __init__(self, agent, args):
        agent = copy.deepcopy(agent)
        self.log_alpha = agent.log_alpha
        H = len(self.log_alpha)
        self.own = [0] * N if H == 1 else range(N)  # head and temperature of each task
        heads = [plain(agent.actor.trunk, agent.actor.heads, 0, i) for i in range(H)]
        self.actor_trunk, self.actor_heads = heads[0][0], [head for _, head in heads]
        self.qf, self.qf_target = (
            [(plain(net.trunk, net.heads, s, 0)[0], [plain(net.trunk, net.heads, s, s * H + i)[1] for i in range(H)])
             for s in range(2)]
            for net in (agent.qf, agent.qf_target)
        )  # fmt: skip
        self.args = args
        parameters = [*self.actor_trunk.parameters(), *(p for head in self.actor_heads for p in head.parameters())]
        self.actor_optimizer = torch.optim.Adam(parameters, lr=args.policy_lr)
        self.q_optimizer = torch.optim.Adam(self.critic_parameters(self.qf), lr=args.q_lr)
        self.a_optimizer = torch.optim.Adam([self.log_alpha], lr=args.q_lr)

    @staticmethod
    def critic_parameters(critics):
        return [p for trunk, heads in critics for net in (trunk, *heads) for p in net.parameters()]

    def act(self, i, obs, noise):
        mean, log_std = self.actor_heads[self.own[i]](self.actor_trunk(obs)).chunk(2, -1)
        return squash(mean, log_std.clamp(-20, 2), noise)

    def values(self, critics, i, obs, actions):
        x = torch.cat([obs, actions], -1)
        return torch.cat([heads[self.own[i]](trunk(x)) for trunk, heads in critics], -1)  # [B, 2]

    def update(self, data, noise):
        log_alpha = self.log_alpha[self.own]  # [N]
        alpha = log_alpha.exp().detach()
        losses = 0
        for i in range(N):
            obs, actions, rewards, next_obs, terminations = (field[i] for field in data)
            with torch.no_grad():
                next_actions, log_prob = self.act(i, next_obs, noise[0, i])
                value = self.values(self.qf_target, i, next_obs, next_actions).amin(1) - alpha[i] * log_prob
                target = rewards + self.args.gamma * (1 - terminations) * value
            losses = losses + (self.values(self.qf, i, obs, actions) - target[:, None]).square().mean(0).sum()
        self.step(self.q_optimizer, losses)
        losses, log_probs = 0, []
        for i in range(N):
            actions, log_prob = self.act(i, data.obs[i], noise[1, i])
            losses = losses + (alpha[i] * log_prob - self.values(self.qf, i, data.obs[i], actions).amin(1)).mean()
            log_probs.append(log_prob.detach())
        self.step(self.actor_optimizer, losses)
        self.step(self.a_optimizer, -(log_alpha * (torch.stack(log_probs) - A).mean(1)).sum())
        with torch.no_grad():
            pairs = zip(self.critic_parameters(self.qf), self.critic_parameters(self.qf_target), strict=True)
            for p, target in pairs:
                target.mul_(1 - self.args.tau).add_(self.args.tau * p)

    @staticmethod
    def step(optimizer, loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def batch():
    shapes = ((N, B, O), (N, B, A), (N, B), (N, B, O))
    return Batch(*(torch.randn(*shape, dtype=F64).tanh() for shape in shapes), (torch.rand(N, B) < 0.2).double())


@pytest.mark.parametrize("fully_shared", [False, True])
def test_updates_are_those_of_plain_modules(make_learner, fixed_noise, fully_shared):
    torch.manual_seed(0)
    args = Args(hidden_sizes=HIDDEN, fully_shared=fully_shared, qmp=not fully_shared)
    agent, optimizers = make_learner(qmp_mtsac, N, O, A, args)
    H = 1 if fully_shared else N
    assert agent.log_alpha.shape == (H,)
    single = PlainAgent(agent, args)
    for _ in range(20):
        data, noise, alpha = batch(), torch.randn(2, N, B, A, dtype=F64), agent.log_alpha.exp().detach().clone()
        with fixed_noise(noise):
            info = update(agent, optimizers, data, args)
        assert all(values.shape == (N,) and not values.requires_grad for values in info.values())
        assert torch.equal(info["alpha"], alpha.expand(N))
        single.update(data, noise)
    for i in range(H):
        trunk, head = plain(agent.actor.trunk, agent.actor.heads, 0, i)
        for net, other in ((trunk, single.actor_trunk), (head, single.actor_heads[i])):
            for p, q in zip(net.parameters(), other.parameters(), strict=True):
                assert_close(p, q, rtol=1e-8, atol=1e-10)
        for stack, others in ((agent.qf, single.qf), (agent.qf_target, single.qf_target)):
            for s in range(2):
                trunk, head = plain(stack.trunk, stack.heads, s, s * H + i)
                for net, other in ((trunk, others[s][0]), (head, others[s][1][i])):
                    for p, q in zip(net.parameters(), other.parameters(), strict=True):
                        assert_close(p, q, rtol=1e-8, atol=1e-10)
    assert_close(agent.log_alpha, single.log_alpha, rtol=1e-8, atol=1e-10)


def test_an_update_with_pcgrad(monkeypatch, make_learner):
    """It projects the gradients of both critics' trunks, then those of the policies'."""
    calls, trunks = [], {}
    monkeypatch.setattr(qmp_mtsac, "project_conflicts", lambda g: calls.append(len(g)) or project_conflicts(g))
    for pcgrad in (False, True):
        torch.manual_seed(0)
        args = Args(hidden_sizes=HIDDEN, pcgrad=pcgrad)
        agent, optimizers = make_learner(qmp_mtsac, N, O, A, args)
        for _ in range(3):  # Adam's first step follows the signs alone
            update(agent, optimizers, batch(), args)
        trunks[pcgrad] = [p.clone() for net in (agent.actor, agent.qf) for p in net.trunk.parameters()]
        assert calls == ([2, 1] * 3 if pcgrad else [])
    assert all(not torch.equal(p, q) for p, q in zip(*trunks.values(), strict=True))


def literal_pcgrad(gradients, order):
    """Algorithm 1 of the paper, line by line: gradients [N, D], order [N, N] of the tasks to project on -> [D]."""
    projected = [g.clone() for g in gradients]
    for i in range(len(gradients)):
        for j in order[i].tolist():
            if j != i:
                dot = projected[i] @ gradients[j]
                if dot < 0:
                    projected[i] -= dot / (gradients[j] @ gradients[j]) * gradients[j]
    return sum(projected)


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 10_000))
def test_pcgrad_is_the_papers_loop(N, D, seed):
    torch.manual_seed(seed)
    gradients, state = torch.randn(2, N, D, dtype=F64), torch.get_rng_state()
    order = torch.rand(2, N, N).argsort(-1)
    torch.set_rng_state(state)
    got = project_conflicts(gradients)
    for s in range(2):
        assert_close(got[s], literal_pcgrad(gradients[s], order[s]), rtol=1e-7, atol=1e-9)


def test_pcgrad_with_a_gradient_of_zero():
    gradients = torch.tensor([[[1.0, 0.0], [-1.0, 1.0], [0.0, 0.0]]])
    assert project_conflicts(gradients).isfinite().all()


@pytest.mark.parametrize("net", ["actor", "qf"])
def test_pcgrad_projects_the_trunk_and_leaves_the_heads(monkeypatch, net):
    torch.manual_seed(0)
    agent = Agent(N, O, A, Args(hidden_sizes=HIDDEN))
    module = getattr(agent, net)
    obs, actions = torch.randn(N, B, O), torch.randn(N, B, A)

    def losses():
        if net == "actor":
            return torch.stack(module(obs)).square().sum((0, 2, 3)).unsqueeze(0) * torch.tensor([1.0, -1.0, 0.5])
        return (module(obs, actions) - torch.tensor([1.0, -3, 2])[:, None]).square().mean(-1)

    seen = []
    monkeypatch.setattr(qmp_mtsac, "project_conflicts", lambda g: seen.append(g) or project_conflicts(g))
    optimizer = torch.optim.SGD(module.parameters(), lr=0)
    state = torch.get_rng_state()
    step_optimizer(optimizer, losses(), module.trunk)
    trunk = [p.grad.clone() for p in module.trunk.parameters()]
    heads = [p.grad.clone() for p in module.heads.parameters()]
    # One backward pass for each task gives the same gradients of the trunk.
    for i in range(N):
        gradients = torch.autograd.grad(losses()[:, i].sum(), [*module.trunk.parameters()])
        assert_close(seen[0][:, i], torch.cat([g.flatten(1) for g in gradients], 1))
    torch.set_rng_state(state)
    assert_close(torch.cat([g.flatten(1) for g in trunk], 1), project_conflicts(seen[0]))
    assert not torch.allclose(project_conflicts(seen[0]), seen[0].sum(1))  # there were conflicts
    step_optimizer(optimizer, losses(), None)
    for p, gradient in zip(module.heads.parameters(), heads, strict=True):
        assert_close(p.grad, gradient)
