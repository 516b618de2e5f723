"""qmp_mtsac.py: heads on shared trunks, one head for all tasks, and PCGrad on the trunks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

import qmp_mtsac
import qmp_sac
from qmp_mtsac import Actor, Agent, Args, Batch, Critic, Mixture, project_conflicts, step_optimizer, update

N, B, O, A, HIDDEN = 3, 6, 4, 2, (16, 8)
F64 = torch.float64


def plain(trunk, heads, s, i):
    """Trunk s and head i as plain `torch.nn` modules that share the memory of nothing."""
    layers = []
    for layer, slot in [*((layer, s) for layer in trunk[0].layers), (heads, i)]:
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
    with torch.no_grad():
        actor.heads.weight *= 500  # so that standard deviations reach their limits
    assert len(actor.heads.weight) == heads and len(qf.heads.weight) == 2 * heads
    obs, actions = torch.randn(N, B, O), torch.randn(N, B, A)
    mean, log_std = actor(obs)
    values = qf(obs, actions)
    assert mean.shape == log_std.shape == (N, B, A) and values.shape == (2, N, B)
    for i in range(N):
        own = i if heads == N else 0
        trunk, head = plain(actor.trunk, actor.heads, 0, own)
        expected_mean, expected_log_std = head(trunk(obs[i])).chunk(2, dim=-1)
        assert (expected_log_std < -20).any() and (expected_log_std > 2).any()
        assert_close(mean[i], expected_mean)
        assert_close(log_std[i], expected_log_std.clamp(-20, 2))
        for s in range(2):
            trunk, head = plain(qf.trunk, qf.heads, s, s * heads + own)
            assert_close(values[s, i], head(trunk(torch.cat([obs[i], actions[i]], -1))).squeeze(-1))


@pytest.mark.parametrize("heads", [N, 1])
def test_states_may_be_shared_by_all_policies(heads):
    actor, obs = Actor(N, O, A, HIDDEN, heads), torch.randn(N, O)
    for got, want in zip(actor(obs.unsqueeze(0)), actor(obs.expand(N, N, O)), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("fully_shared", [False, True])
def test_agent_starts_with_its_critics_as_targets_and_the_alpha_asked_for(fully_shared):
    agent = Agent(N, O, A, Args(hidden_sizes=HIDDEN, alpha=0.2, fully_shared=fully_shared, qmp=not fully_shared))
    assert_close(agent.log_alpha.exp().tolist(), [0.2] * (1 if fully_shared else N))
    for p, target in zip(agent.qf.parameters(), agent.qf_target.parameters(), strict=True):
        assert torch.equal(p, target) and p.data_ptr() != target.data_ptr() and not target.requires_grad


def batch():
    shapes = ((N, B, O), (N, B, A), (N, B), (N, B, O))
    return Batch(*(torch.randn(*shape, dtype=F64).tanh() for shape in shapes), (torch.rand(N, B) < 0.2).double())


class TwiceSquashed(nn.Module):
    """A policy whose mean is tanh of another's."""

    def __init__(self, actor):
        super().__init__()
        self.actor, self.N = actor, actor.N

    def forward(self, obs):
        mean, log_std = self.actor(obs)
        return mean.tanh(), log_std


@pytest.mark.parametrize("fully_shared", [False, True])
@pytest.mark.parametrize("double_tanh", [False, True])
def test_an_update_is_that_of_sac_with_these_networks(make_learner, fully_shared, double_tanh):
    """All tasks' losses together move what they share, temperatures too."""
    args = Args(hidden_sizes=HIDDEN, fully_shared=fully_shared, qmp=not fully_shared, double_tanh=double_tanh)
    learners = []
    for _ in range(2):
        torch.manual_seed(0)
        learners.append(make_learner(qmp_mtsac, N, O, A, args))
    if double_tanh:
        learners[1][0].actor = TwiceSquashed(learners[1][0].actor)
    for _ in range(20):
        data, generator = batch(), torch.get_rng_state()
        info = update(*learners[0], data, args)
        torch.set_rng_state(generator)
        expected = qmp_sac.update(*learners[1], data, args)
        assert info.keys() == expected.keys()
        for name, values in info.items():
            assert values.shape == (N,) and not values.requires_grad
            assert_close(values, expected[name].expand(N))
    agent, other = learners[0][0], learners[1][0]
    assert agent.log_alpha.shape == (1 if fully_shared else N,)
    for p, q in zip(agent.parameters(), other.parameters(), strict=True):
        assert_close(p, q)


@pytest.mark.parametrize(
    "own_policy_prob, mean_actions, twice",
    [(1, False, True), (1, True, False), (0.999, False, False), (0, False, False), (0, True, False)],
)
def test_double_tanh_is_of_collecting_without_the_switch(own_policy_prob, mean_actions, twice):
    """Evaluation and the switch squash the means once."""
    args, obs = Args(hidden_sizes=HIDDEN, double_tanh=True, switch_rule="uniform"), torch.randn(N, O).numpy()
    agent = Agent(N, O, A, args)
    with torch.no_grad():  # the policies of all tasks have the same mean and hardly any noise
        for parameter, value in zip(agent.actor.heads.parameters(), (0, torch.tensor([3.0, 1, -20, -20])), strict=True):
            parameter.copy_(torch.as_tensor(value).expand_as(parameter))
    actions = Mixture(agent, args, own_policy_prob, mean_actions).act(obs, torch.zeros(N).numpy())
    mean = torch.tensor([3.0, 1]).expand(N, A)
    assert_close(torch.as_tensor(actions), (mean.tanh() if twice else mean).tanh())


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
