"""Updates of qmp_sac.py: a stack learns as N separate SAC agents do, replay keeps tasks apart."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import F64, fixed_noise, layers, make_learner, random_batch, unstack
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, TanhTransform, TransformedDistribution
from torch.testing import assert_close

import qmp_sac
from qmp_sac import Args, Batch, ReplayBuffer, update

SETTINGS = {"gamma": 0.97, "tau": 0.01, "policy_lr": 3e-4, "q_lr": 1e-3}


def state_of(agent):
    """Everything that learning changes, with the task's axis first: {name: tensor [N, ...]}."""
    N = len(agent.log_alpha)
    tensors = {}
    for name, p in agent.named_parameters():
        if name.startswith("qf"):  # the twins of a task lie N apart
            p = p.view(2, N, *p.shape[1:]).transpose(0, 1)
        tensors[name] = p.detach().clone()
    return tensors


class SingleAgent:
    """Soft actor-critic on one task, written plainly; starts from slice i of the script's agent."""

    def __init__(self, agent, i, A, args):
        N, self.A, self.args = len(agent.log_alpha), A, args
        self.actor = unstack(agent.actor.net, i)
        self.qf1, self.qf2 = unstack(agent.qf.net, i), unstack(agent.qf.net, N + i)
        self.qf1_target, self.qf2_target = copy.deepcopy(self.qf1), copy.deepcopy(self.qf2)
        self.log_alpha = agent.log_alpha[i].detach().clone().requires_grad_()
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=args.policy_lr)
        self.q_optimizer = torch.optim.Adam(
            [*self.qf1.parameters(), *self.qf2.parameters()], lr=args.q_lr
        )
        self.a_optimizer = torch.optim.Adam([self.log_alpha], lr=args.q_lr)

    def act(self, obs, noise):
        mean, log_std = self.actor(obs).split(self.A, dim=1)
        std = log_std.clamp(-20, 2).exp()
        policy = TransformedDistribution(Normal(mean, std), TanhTransform(cache_size=1))
        actions = policy.transforms[0](mean + std * noise)
        return actions, policy.log_prob(actions).sum(1, keepdim=True)  # [B, A], [B, 1]

    def update(self, obs, actions, rewards, next_obs, terminations, noise):
        alpha = self.log_alpha.exp().item()
        with torch.no_grad():
            next_actions, next_log_prob = self.act(next_obs, noise[0])
            x = torch.cat([next_obs, next_actions], 1)
            value = torch.minimum(self.qf1_target(x), self.qf2_target(x)) - alpha * next_log_prob
            target = rewards + self.args.gamma * (1 - terminations) * value.squeeze(1)
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
        info["alpha"] = torch.tensor(alpha, dtype=F64)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()

        alpha_loss = (-self.log_alpha * (log_prob.detach() - self.A)).mean()
        info["alpha_loss"] = alpha_loss
        if self.args.autotune:
            self.a_optimizer.zero_grad()
            alpha_loss.backward()
            self.a_optimizer.step()

        for net, net_target in ((self.qf1, self.qf1_target), (self.qf2, self.qf2_target)):
            for p, p_target in zip(net.parameters(), net_target.parameters(), strict=True):
                p_target.data.copy_(self.args.tau * p.data + (1 - self.args.tau) * p_target.data)
        return {name: value.item() for name, value in info.items()}


@pytest.mark.parametrize(
    "N, B, O, A, hidden_sizes, autotune, updates",
    [
        (3, 8, 5, 2, (16, 12), True, 20),
        (1, 4, 3, 1, (8,), True, 20),
        (5, 1, 2, 3, (3,), True, 1),
        (2, 6, 4, 2, (9, 9, 9), False, 20),
        (7, 400, 4, 2, (64, 48), True, 2),  # a stack that is run in parts
    ],
)
def test_stack_equals_separate_agents(N, B, O, A, hidden_sizes, autotune, updates):
    torch.manual_seed(0)
    args = Args(**SETTINGS, hidden_sizes=hidden_sizes, autotune=autotune)
    agent, optimizers = make_learner(qmp_sac, N, O, A, args)
    singles = [SingleAgent(agent, i, A, args) for i in range(N)]
    start = state_of(agent)
    for _ in range(updates):
        data, noise = random_batch(qmp_sac, N, B, O, A), torch.randn(2, N, B, A, dtype=F64)
        with fixed_noise(noise):
            info = update(agent, optimizers, data, args)
        expected = [singles[i].update(*(field[i] for field in data), noise[:, i]) for i in range(N)]
        assert info.keys() == expected[0].keys()
        for name, values in info.items():
            assert values.shape == (N,) and not values.requires_grad
            plain = [single[name] for single in expected]
            assert_close(values.tolist(), plain, rtol=1e-9, atol=1e-11)

    for i, single in enumerate(singles):
        pairs = [(agent.actor, i, single.actor)]
        pairs += [(agent.qf, i, single.qf1), (agent.qf, N + i, single.qf2)]
        pairs += [(agent.qf_target, i, single.qf1_target)]
        pairs += [(agent.qf_target, N + i, single.qf2_target)]
        for net, k, plain in pairs:
            for p, q in zip(unstack(net, k).parameters(), plain.parameters(), strict=True):
                assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert_close(agent.log_alpha[i], single.log_alpha, rtol=1e-9, atol=0)
    # The comparison is not of networks that stand still.
    for name, value in state_of(agent).items():
        moved = (value - start[name]).abs().reshape(N, -1).amax(1)
        is_learned = autotune or name != "log_alpha"
        assert (moved > 1e-6).all() if is_learned else (moved == 0).all(), name


@pytest.mark.parametrize("perturbation", [1.0, math.nan])
@pytest.mark.parametrize("i", [0, 1, 2])
def test_task_learns_from_its_own_data_alone(i, perturbation):
    """Whatever the data of other tasks are, after five updates task i is the same, bit for bit."""
    N, B, O, A, args = 3, 8, 5, 2, Args(**SETTINGS, hidden_sizes=(16, 16))
    learners = []
    for _ in range(2):
        torch.manual_seed(0)
        learners.append(make_learner(qmp_sac, N, O, A, args))
    others = torch.arange(N) != i
    for _ in range(5):
        data = random_batch(qmp_sac, N, B, O, A)
        changed = Batch(*(field.clone() for field in data))
        for field in changed:
            field[others] += perturbation
        generator = torch.get_rng_state()
        info = update(*learners[0], data, args)
        torch.set_rng_state(generator)
        changed_info = update(*learners[1], changed, args)
        for name in info:
            assert torch.equal(info[name][i], changed_info[name][i])
    states = [state_of(agent) for agent, _ in learners]
    for name, p in states[0].items():
        q = states[1][name]
        assert torch.isfinite(p[i]).all()
        assert torch.equal(p[i], q[i]), name
        # The perturbation did reach the others.
        assert name == "log_alpha" or not torch.equal(p[others], q[others])


def set_constant(net, values):
    """Make a stack of networks answer `values` [S][out], whatever it is asked."""
    last = layers(net)[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.tensor(values, dtype=F64).view_as(last.bias))
    return last.bias


def test_noise_is_standard_normal():
    """For both draws of every task, from the global random numbers."""
    args = Args(hidden_sizes=(4,))
    learner, data = make_learner(qmp_sac, 3, 2, 2, args), random_batch(qmp_sac, 3, 40, 2, 2)
    with mock.patch("torch.randn", wraps=torch.randn) as randn:
        update(*learner, data, args)
    randn.assert_called_once_with(2, 3, 40, 2, device=data.obs.device)


def test_only_termination_stops_the_bootstrap():
    """Losses and steps in closed form: r + gamma (1 - terminated) (min target-Q - alpha log pi).

    A truncated transition is stored with termination 0, so it bootstraps as any other.
    """
    N, B, O, A, args = 2, 4, 3, 2, Args(gamma=0.9, tau=0.0, hidden_sizes=(4,))
    agent, optimizers = make_learner(qmp_sac, N, O, A, args)
    set_constant(agent.actor, [[0.0] * 2 * A] * N)  # mean 0, std 1
    log_prob = -0.5 * 0.3**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(0.3) ** 2)
    log_prob *= A
    alpha = [0.5, 2.0]
    agent.log_alpha.data = torch.tensor(alpha, dtype=F64).log()
    set_constant(agent.qf_target, [3.0, 8, 5, 7])  # the minimum is Q1 in task 0, Q2 in task 1
    minimum, q = [3.0, 7.0], [[0.0, 0.0], [1.0, -1.0]]
    bias = set_constant(agent.qf, [0.0, 0, 1, -1])
    optimizers["q"] = torch.optim.SGD([bias], lr=0.1)
    rewards, terminations = [[1.0, 2, 3, 4], [-1.0, 0, 10, 0]], [[0.0, 1, 0, 1], [0.0, 0, 0, 1]]
    data = random_batch(qmp_sac, N, B, O, A)._replace(
        rewards=torch.tensor(rewards, dtype=F64), terminations=torch.tensor(terminations, dtype=F64)
    )
    next_values = [0.9 * (minimum[i] - alpha[i] * log_prob) for i in range(N)]
    targets = np.array(rewards) + (1 - np.array(terminations)) * np.array(next_values)[:, None]

    with fixed_noise(torch.full((2, N, B, A), 0.3, dtype=F64)):
        info = update(agent, optimizers, data, args)
    assert_close(info["qf1_values"].tolist(), [0.0, 0.0])
    assert_close(info["qf2_values"].tolist(), [1.0, -1.0])
    moved = np.zeros((2, N))
    for c, loss in enumerate((info["qf1_loss"], info["qf2_loss"])):
        for i in range(N):
            errors = q[c][i] - targets[i]
            assert loss[i].item() == pytest.approx(np.mean(errors**2), rel=1e-12)
            # The gradient is that of the mean squared error of this critic and task alone.
            moved[c, i] = q[c][i] - 0.1 * 2 * np.mean(errors)
            assert bias[c * N + i].item() == pytest.approx(moved[c, i], rel=1e-12)
    # The policies are judged by the critics that have just learned, and by alpha of before.
    for i in range(N):
        alpha_loss = -math.log(alpha[i]) * (log_prob - A)
        expected = [alpha[i] * log_prob - min(moved[:, i]), -log_prob, alpha[i], alpha_loss]
        found = [info[name][i] for name in ("actor_loss", "entropy", "alpha", "alpha_loss")]
        assert [x.item() for x in found] == pytest.approx(expected, rel=1e-12)


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


@given(
    N=st.integers(1, 4),
    capacity=st.integers(1, 9),
    steps=st.integers(1, 25),
    seed=st.integers(0, 2**31),
)
def test_buffer_keeps_the_newest_of_each_task_with_fields_aligned(N, capacity, steps, seed):
    torch.manual_seed(seed)
    rb = ReplayBuffer(N, 3, 2, capacity, torch.device("cpu"))
    fill(rb, N, steps)
    assert rb.added == steps
    data = rb.sample(400)
    assert [field.shape[2:] for field in data] == [(3,), (2,), (), (3,), ()]
    assert all(field.shape[:2] == (N, 400) and field.dtype == torch.float32 for field in data)
    code = data.rewards - 0.5  # [N, B]
    kept = range(max(0, steps - capacity), steps)
    for i in range(N):  # all rows that must be there, and none else: 400 draws of at most 9
        assert set(code[i].tolist()) == {1000.0 * i + t for t in kept}
    assert torch.equal(data.obs, torch.stack([code, -code, 0 * code], dim=-1))
    assert torch.equal(data.next_obs, data.obs + 1)
    assert torch.equal(data.actions[..., 1], code)
    assert_close(data.actions[..., 0], code / 7)
    assert torch.equal(data.terminations, (code % 2 == 0).float())


def test_buffer_samples_uniformly():
    torch.manual_seed(0)
    rb, draws = ReplayBuffer(2, 3, 2, 16, torch.device("cpu")), 40_000
    fill(rb, 2, 20)
    code = rb.sample(draws).rewards - 0.5
    times = (code - 1000 * torch.arange(2)[:, None]).long() - 4  # [N, B] in 0 .. 15
    counts = torch.stack([torch.bincount(row, minlength=16) for row in times]).double()
    chi_square = ((counts - draws / 16).square() / (draws / 16)).sum(1)
    assert (chi_square < 44.3).all()  # 15 degrees of freedom, one in ten thousand
    assert (times[0] == times[1]).double().mean() < 0.1  # tasks draw apart: alike one time in 16


def test_sampled_batch_is_a_copy_drawn_by_the_generator_given():
    rb = ReplayBuffer(2, 3, 2, 4, torch.device("cpu"))
    fill(rb, 2, 4)
    state = torch.get_rng_state()
    data, again = (rb.sample(8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(data, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    before = [field.clone() for field in data]
    fill(rb, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(data, before, strict=True))
