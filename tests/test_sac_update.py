"""Updates of qmp_sac.py: the stack learns as N separate SAC agents do, and the replay buffer keeps tasks apart."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

from qmp_sac import Actor, Batch, Critic, ReplayBuffer, update_actor, update_alpha, update_critic, update_target

GAMMA, TAU, POLICY_LR, Q_LR = 0.97, 0.01, 3e-4, 1e-3


class Stack:
    """N agents as the script makes and updates them, in float64."""

    def __init__(self, N, O, A, hidden_sizes):
        self.A = A
        self.actor = Actor(N, O, A, hidden_sizes).double()
        self.qf, self.qf_target = (Critic(N, O, A, hidden_sizes).double() for _ in range(2))
        self.qf_target.load_state_dict(self.qf.state_dict())
        self.log_alpha = torch.linspace(-1.5, 0.5, N, dtype=torch.float64, requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=POLICY_LR, fused=True)
        self.q_optimizer = torch.optim.Adam(self.qf.parameters(), lr=Q_LR, fused=True)
        self.a_optimizer = torch.optim.Adam([self.log_alpha], lr=Q_LR, fused=True)

    def update(self, data, noise, autotune=True):
        """One round in the script's order; returns what the script logs, each [N]."""
        info = update_critic(
            self.actor, self.qf, self.qf_target, self.log_alpha, self.q_optimizer, data, noise[0], GAMMA
        )
        actor_info, log_prob = update_actor(self.actor, self.qf, self.log_alpha, self.actor_optimizer, data, noise[1])
        info |= actor_info
        if autotune:
            info |= update_alpha(self.log_alpha, self.a_optimizer, log_prob, -self.A)
        update_target(self.qf, self.qf_target, TAU)
        return info

    def state(self):
        """Everything that learning changes, with the task's axis first: {name: tensor [N, ...]}."""
        N = len(self.log_alpha)
        tensors = {f"actor.{name}": p for name, p in self.actor.named_parameters()}
        for net, critic in (("qf", self.qf), ("qf_target", self.qf_target)):
            for name, p in critic.named_parameters():
                tensors[f"{net}.{name}"] = p.view(2, N, *p.shape[1:]).transpose(0, 1)
        tensors["log_alpha"] = self.log_alpha
        return {name: p.detach().clone() for name, p in tensors.items()}


class SingleAgent:
    """Soft actor-critic on one task, written plainly; starts from slice i of a stack."""

    def __init__(self, stack, unstack, i):
        N, self.A = len(stack.log_alpha), stack.A
        self.actor = unstack(stack.actor.net, i)
        self.qf1, self.qf2 = unstack(stack.qf.net, i), unstack(stack.qf.net, N + i)
        self.qf1_target, self.qf2_target = copy.deepcopy(self.qf1), copy.deepcopy(self.qf2)
        self.log_alpha = stack.log_alpha[i].detach().clone().requires_grad_()
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=POLICY_LR)
        self.q_optimizer = torch.optim.Adam([*self.qf1.parameters(), *self.qf2.parameters()], lr=Q_LR)
        self.a_optimizer = torch.optim.Adam([self.log_alpha], lr=Q_LR)

    def act(self, obs, noise):
        mean, log_std = self.actor(obs).split(self.A, dim=1)
        std = log_std.clamp(-20, 2).exp()
        policy = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
        actions = policy.transforms[0](mean + std * noise)
        return actions, policy.log_prob(actions).sum(1, keepdim=True)  # [B, A], [B, 1]

    def update(self, obs, actions, rewards, next_obs, terminations, noise, autotune):
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            next_actions, next_log_prob = self.act(next_obs, noise[0])
            x = torch.cat([next_obs, next_actions], 1)
            value = torch.minimum(self.qf1_target(x), self.qf2_target(x)) - alpha * next_log_prob
            target = rewards + (GAMMA * (1 - terminations) * value.squeeze(1))
        x = torch.cat([obs, actions], 1)
        qf1_loss = torch.nn.functional.mse_loss(self.qf1(x).squeeze(1), target)
        qf2_loss = torch.nn.functional.mse_loss(self.qf2(x).squeeze(1), target)
        info = {"qf1_values": self.qf1(x).mean(), "qf2_values": self.qf2(x).mean()}
        info |= {"qf1_loss": qf1_loss, "qf2_loss": qf2_loss}
        self.q_optimizer.zero_grad()
        (qf1_loss + qf2_loss).backward()
        self.q_optimizer.step()

        pi, log_prob = self.act(obs, noise[1])
        x = torch.cat([obs, pi], 1)
        actor_loss = (alpha * log_prob - torch.minimum(self.qf1(x), self.qf2(x))).mean()
        info |= {"actor_loss": actor_loss, "entropy": -log_prob.mean()}
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        if autotune:
            alpha_loss = (-self.log_alpha * (log_prob.detach() - self.A)).mean()
            info["alpha_loss"] = alpha_loss
            self.a_optimizer.zero_grad()
            alpha_loss.backward()
            self.a_optimizer.step()

        for net, net_target in ((self.qf1, self.qf1_target), (self.qf2, self.qf2_target)):
            for p, p_target in zip(net.parameters(), net_target.parameters(), strict=True):
                p_target.data.copy_(TAU * p.data + (1 - TAU) * p_target.data)
        return {name: value.item() for name, value in info.items()}


def random_batch(N, B, O, A):
    return Batch(
        obs=torch.randn(N, B, O, dtype=torch.float64),
        actions=2 * torch.rand(N, B, A, dtype=torch.float64) - 1,
        rewards=3 * torch.randn(N, B, dtype=torch.float64),
        next_obs=torch.randn(N, B, O, dtype=torch.float64),
        terminations=(torch.rand(N, B) < 0.3).double(),
    )


def random_noise(N, B, A):
    return torch.randn(2, N, B, A, dtype=torch.float64)


# A stack is N agents


@pytest.mark.parametrize("updates", [1, 20])
@pytest.mark.parametrize(
    "N, B, O, A, hidden_sizes, autotune",
    [(3, 8, 5, 2, (16, 12), True), (1, 4, 3, 1, (8,), True), (5, 1, 2, 3, (), True), (2, 6, 4, 2, (9, 9, 9), False)],
)
def test_stack_equals_separate_agents(unstack, N, B, O, A, hidden_sizes, autotune, updates):
    torch.manual_seed(0)
    stack = Stack(N, O, A, hidden_sizes)
    agents = [SingleAgent(stack, unstack, i) for i in range(N)]
    start = stack.state()
    for _ in range(updates):
        data, noise = random_batch(N, B, O, A), random_noise(N, B, A)
        info = stack.update(data, noise, autotune)
        expected = [agents[i].update(*(field[i] for field in data), noise[:, i], autotune) for i in range(N)]
        assert info.keys() == expected[0].keys()
        for name, values in info.items():
            assert values.shape == (N,) and not values.requires_grad
            assert_close(values.tolist(), [agent[name] for agent in expected], rtol=1e-9, atol=1e-11)

    for i, agent in enumerate(agents):
        pairs = [(unstack(stack.actor.net, i), agent.actor)]
        pairs += [(unstack(stack.qf.net, i), agent.qf1), (unstack(stack.qf.net, N + i), agent.qf2)]
        pairs += [(unstack(stack.qf_target.net, i), agent.qf1_target)]
        pairs += [(unstack(stack.qf_target.net, N + i), agent.qf2_target)]
        for net, plain in pairs:
            for p, q in zip(net.parameters(), plain.parameters(), strict=True):
                assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert_close(stack.log_alpha[i], agent.log_alpha, rtol=1e-9, atol=0)
    # The comparison is not of networks that stand still.
    for name, value in stack.state().items():
        moved = (value - start[name]).abs().reshape(N, -1).amax(1)
        assert (moved > 1e-6).all() if autotune or name != "log_alpha" else (moved == 0).all(), name


@pytest.mark.parametrize("perturbation", [1.0, 1e6, math.inf, math.nan])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_task_learns_from_its_own_data_alone(i, perturbation):
    """Whatever the data of all other tasks are, after five updates task i is the same, bit for bit."""
    N, B, O, A = 3, 8, 5, 2
    stacks = []
    for _ in range(2):
        torch.manual_seed(0)
        stacks.append(Stack(N, O, A, (16, 16)))
    stack, other = stacks
    for _ in range(5):
        data, noise = random_batch(N, B, O, A), random_noise(N, B, A)
        others = torch.arange(N) != i
        changed = Batch(*(field.clone() for field in data))
        for field in changed:
            field[others] += perturbation
        info, changed_info = stack.update(data, noise), other.update(changed, noise)
        for name in info:
            assert torch.equal(info[name][i], changed_info[name][i])
    for (name, p), q in zip(stack.state().items(), other.state().values(), strict=True):
        assert torch.isfinite(p[i]).all()
        assert torch.equal(p[i], q[i]), name
        assert name == "log_alpha" or not torch.equal(p[others], q[others])  # the perturbation did reach the others


# Targets and losses


def constant_critic(N, O, A, values):
    """Critics that answer `values` [2][N] whatever they are asked."""
    qf = Critic(N, O, A, (4,)).double()
    with torch.no_grad():
        qf.net[-1].weight.zero_()
        qf.net[-1].bias.copy_(torch.tensor(values, dtype=torch.float64).view(2 * N, 1, 1))
    return qf


def test_only_termination_stops_the_bootstrap():
    """Loss and step equal the closed form r + gamma (1 - terminated) (min target-Q - alpha log pi).

    A truncated transition is stored with termination 0, so it bootstraps as any other.
    """
    N, B, O, A, gamma = 2, 4, 3, 2, 0.9
    actor = Actor(N, O, A, ()).double()
    for p in actor.parameters():
        p.data.zero_()
    log_prob = A * (-0.5 * 0.3**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(0.3) ** 2))
    noise = torch.full((N, B, A), 0.3, dtype=torch.float64)  # mean 0, std 1: a = tanh(0.3) in every dimension
    alpha = [0.5, 2.0]
    log_alpha = torch.tensor(alpha, dtype=torch.float64).log().requires_grad_()
    qf_target = constant_critic(N, O, A, [[3.0, 8.0], [5.0, 7.0]])  # the minimum is Q1 in task 0, Q2 in task 1
    minimum = [3.0, 7.0]
    data = random_batch(N, B, O, A)._replace(
        rewards=torch.tensor([[1.0, 2, 3, 4], [-1, 0, 10, 0]], dtype=torch.float64),
        terminations=torch.tensor([[0.0, 1, 0, 1], [0, 0, 0, 1]], dtype=torch.float64),
    )
    targets = [
        [r + (0 if t else gamma * (minimum[i] - alpha[i] * log_prob)) for r, t in zip(rewards, terms, strict=True)]
        for i, (rewards, terms) in enumerate(zip(data.rewards.tolist(), data.terminations.tolist(), strict=True))
    ]

    qf = constant_critic(N, O, A, [[0.0, 0.0], [1.0, -1.0]])
    optimizer = torch.optim.SGD([qf.net[-1].bias], lr=0.1)
    info = update_critic(actor, qf, qf_target, log_alpha, optimizer, data, noise, gamma)
    assert_close(info["qf1_values"].tolist(), [0.0, 0.0])
    assert_close(info["qf2_values"].tolist(), [1.0, -1.0])
    for c, loss in enumerate((info["qf1_loss"], info["qf2_loss"])):
        for i in range(N):
            q = [[0.0, 0.0], [1.0, -1.0]][c][i]
            assert loss[i].item() == pytest.approx(np.mean([(q - y) ** 2 for y in targets[i]]), rel=1e-12)
            # The gradient by the output's bias is that of the mean squared error of this critic and task alone.
            moved = qf.net[-1].bias[c * N + i].item()
            assert moved == pytest.approx(q - 0.1 * 2 * np.mean([q - y for y in targets[i]]), rel=1e-12)


def test_target_is_of_the_next_observation():
    """It depends on next_obs where the episode goes on, and not where it terminated."""
    losses = []
    for shift in (0.0, 1.0):
        torch.manual_seed(0)
        stack, data, noise = Stack(2, 3, 2, (8,)), random_batch(2, 6, 3, 2), random_noise(2, 6, 2)
        terminations = torch.tensor([[1.0], [0.0]], dtype=torch.float64).expand(2, 6)
        data = data._replace(next_obs=data.next_obs + shift, terminations=terminations)
        losses.append(stack.update(data, noise)["qf1_loss"])
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_updates_move_only_their_own_parameters():
    torch.manual_seed(0)
    N, B, O, A = 3, 8, 5, 2
    stack, data, noise = Stack(N, O, A, (16,)), random_batch(N, B, O, A), random_noise(N, B, A)

    def moved(update):
        before = stack.state()
        result = update()
        after = stack.state()
        return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}, result

    parts, _ = moved(
        lambda: update_critic(
            stack.actor, stack.qf, stack.qf_target, stack.log_alpha, stack.q_optimizer, data, noise[0], GAMMA
        )
    )
    assert parts == {"qf"}
    parts, (_, log_prob) = moved(
        lambda: update_actor(stack.actor, stack.qf, stack.log_alpha, stack.actor_optimizer, data, noise[1])
    )
    assert parts == {"actor"}
    assert log_prob.shape == (N, B) and not log_prob.requires_grad
    parts, _ = moved(lambda: update_alpha(stack.log_alpha, stack.a_optimizer, log_prob, -A))
    assert parts == {"log_alpha"}
    parts, _ = moved(lambda: update_target(stack.qf, stack.qf_target, TAU))
    assert parts == {"qf_target"}


@pytest.mark.parametrize("tau", [0.0, 0.005, 0.3, 1.0])
def test_target_moves_by_tau(tau):
    torch.manual_seed(0)
    qf, qf_target = (Critic(3, 4, 2, (8, 8)).double() for _ in range(2))
    expected = [(1 - tau) * q + tau * p for p, q in zip(qf.parameters(), qf_target.parameters(), strict=True)]
    source = [p.clone() for p in qf.parameters()]
    update_target(qf, qf_target, tau)
    for q, value in zip(qf_target.parameters(), expected, strict=True):
        assert_close(q.detach(), value.detach(), rtol=1e-12, atol=1e-15)
    for p, value in zip(qf.parameters(), source, strict=True):
        assert torch.equal(p, value)


def test_alpha_follows_the_entropy():
    """Up where entropy is below the target, down where it is above, still where it is met; each task for itself."""
    A, lr = 2, 0.01
    log_alpha = torch.tensor([0.5, -3.0, -1.0], dtype=torch.float64, requires_grad=True)
    start = log_alpha.detach().clone()
    optimizer = torch.optim.Adam([log_alpha], lr=lr, fused=True)
    entropy = torch.tensor(
        [[-3.0, -5.0], [-1.0, 1.5], [-3.0, -1.0]], dtype=torch.float64
    )  # target -2: means -4, .25, -2
    info = update_alpha(log_alpha, optimizer, -entropy, -A)
    # The first step of Adam is lr times the gradient's sign.
    assert_close(log_alpha.detach() - start, torch.tensor([lr, -lr, 0.0], dtype=torch.float64), rtol=1e-6, atol=1e-12)
    assert_close(info["alpha_loss"].tolist(), [-0.5 * 2, 3.0 * -2.25, 0.0])


# Replay buffer


def fill(rb, N, steps):
    """Transition t of task i holds, in every field, numbers that tell i and t."""
    for t in range(steps):
        code = 1000.0 * np.arange(N) + t  # [N]
        obs = np.stack([code, -code, 0 * code], axis=1)  # [N, 3]
        arrays = [obs.astype(np.float32), np.stack([code / 7, code], axis=1).astype(np.float32)]
        arrays += [code + 0.5, obs.astype(np.float32) + 1, code.astype(int) % 2 == 0]
        rb.add(*arrays)
        for array in arrays:  # environments may write their next observation into the same memory
            array[:] = 0


@given(N=st.integers(1, 4), capacity=st.integers(1, 9), steps=st.integers(1, 25), seed=st.integers(0, 2**31))
def test_buffer_keeps_the_newest_of_each_task_with_fields_aligned(N, capacity, steps, seed):
    torch.manual_seed(seed)
    rb = ReplayBuffer(N, capacity, 3, 2, torch.device("cpu"))
    fill(rb, N, steps)
    assert rb.size == min(steps, capacity)
    data = rb.sample(400)
    assert [field.shape[2:] for field in data] == [(3,), (2,), (), (3,), ()]
    assert all(field.shape[:2] == (N, 400) and field.dtype == torch.float32 for field in data)
    code = data.rewards - 0.5  # [N, B]
    for i in range(N):  # all rows that must be there, and none else, so that 400 draws of at most 9 show each
        assert set(code[i].tolist()) == {1000.0 * i + t for t in range(max(0, steps - capacity), steps)}
    assert torch.equal(data.obs, torch.stack([code, -code, 0 * code], dim=-1))
    assert torch.equal(data.next_obs, data.obs + 1)
    assert torch.equal(data.actions[..., 1], code)
    assert_close(data.actions[..., 0], code / 7)
    assert torch.equal(data.terminations, (code % 2 == 0).float())


def test_buffer_samples_uniformly():
    torch.manual_seed(0)
    rb, draws = ReplayBuffer(2, 16, 3, 2, torch.device("cpu")), 40_000
    fill(rb, 2, 20)
    times = (rb.sample(draws).rewards - 0.5 - 1000 * torch.arange(2)[:, None]).long() - 4  # [N, B] in 0 .. 15
    counts = torch.stack([torch.bincount(row, minlength=16) for row in times]).double()
    chi_square = ((counts - draws / 16).square() / (draws / 16)).sum(1)
    assert (chi_square < 44.3).all()  # 15 degrees of freedom, one in ten thousand
    assert (times[0] == times[1]).double().mean() < 0.1  # tasks draw apart: alike one time in 16


def test_sampled_batch_is_a_copy():
    torch.manual_seed(0)
    rb = ReplayBuffer(2, 4, 3, 2, torch.device("cpu"))
    fill(rb, 2, 4)
    data = rb.sample(8)
    before = [field.clone() for field in data]
    fill(rb, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
