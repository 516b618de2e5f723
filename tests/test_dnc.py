"""qmp_dnc.py: divergences between policies, their weight, and distillation."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

import envs
import qmp_dnc
from qmp_dnc import Agent, Args, Batch, ReplayBuffer, distill, kl_divergences, update

N, B, O, A = 3, 8, 4, 2
F64 = torch.float64


def learner(args, seed=0):
    """An agent of qmp_dnc.py and its optimizers, as its main makes them."""
    torch.manual_seed(seed)
    agent = Agent(N, O, A, args)
    adams = {"q": agent.qf.parameters(), "actor": agent.actor.parameters(), "alpha": [agent.log_alpha]}
    adams["center"] = agent.center.parameters()
    return agent, {name: torch.optim.Adam(parameters, lr=1e-3, fused=True) for name, parameters in adams.items()}


def batch():
    shapes = ((N, B, O), (N, B, A), (N, B), (N, B, O))
    return Batch(*(torch.randn(*shape).tanh() for shape in shapes), (torch.rand(N, B) < 0.2).float())


# Divergences


def sums_of_torch(mean, log_std):
    """Sum over j of KL(pi_j || pi_i), pi_j held fixed, by torch.distributions in double precision: -> [N, S]."""
    policies = [Normal(m, s.exp()) for m, s in zip(mean.double(), log_std.double(), strict=True)]
    fixed = [Normal(policy.mean.detach(), policy.stddev.detach()) for policy in policies]
    return torch.stack([sum(kl_divergence(pi_j, pi_i) for pi_j in fixed).sum(-1) for pi_i in policies])


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_divergences_are_those_of_torch(N, S, A, seed):
    torch.manual_seed(seed)
    mean, log_std = 3 * torch.randn(N, S, A, dtype=F64), torch.randn(N, S, A, dtype=F64)
    assert_close(kl_divergences(mean, log_std), sums_of_torch(mean, log_std))


@pytest.mark.parametrize("far, apart, narrow", [(0, 1, 0), (1, 1e-3, -1), (100, 1e-3, -7), (30, 1e-4, -20)])
def test_divergences_lose_no_digits(far, apart, narrow):
    """Of fifty policies that are close together, whose means are up to a billion times as far out as they spread."""
    torch.manual_seed(0)
    mean = (far * torch.randn(1, 20, A) + apart * torch.randn(50, 20, A)).requires_grad_()
    log_std = (narrow + min(apart, 0.1) * torch.randn(50, 20, A)).requires_grad_()
    got, want = kl_divergences(mean, log_std), sums_of_torch(mean, log_std)
    assert_close(got, want, rtol=1e-7, atol=1e-12)
    for gradients in zip(*(torch.autograd.grad(x.sum(), (mean, log_std)) for x in (got, want)), strict=True):
        assert_close(*gradients, rtol=1e-6, atol=1e-12 * float(gradients[1].abs().max()))


def test_an_update_pulls_each_policy_towards_the_others(unstack):
    """By beta times the mean over the states of all tasks of the sum over j of KL(pi_j || pi_i), pi_j held fixed."""
    beta, steps = 0.3, {}
    for kl_coef in (0.0, beta):
        args = Args(hidden_sizes=(8,), kl_coef=kl_coef)
        agent, optimizers = learner(args)
        before = copy.deepcopy(agent.actor)
        optimizers["actor"] = torch.optim.SGD(agent.actor.parameters(), lr=1.0)
        data = batch()
        info = update(agent, optimizers, data, args)
        steps[kl_coef] = [p - q for p, q in zip(agent.actor.parameters(), before.parameters(), strict=True)]
        assert info["kl_penalty"].shape == (N,) and (info["kl_penalty"] > 0).all() == (kl_coef > 0)
    pulls = [with_kl - without for without, with_kl in zip(steps[0.0], steps[beta], strict=True)]

    states = data.obs.reshape(N * B, O)
    nets = [unstack(before.net, i) for i in range(N)]
    gaussians = []
    for net in nets:
        mean, log_std = net(states).chunk(2, dim=-1)
        gaussians.append(Normal(mean, log_std.exp()))
    fixed = [Normal(gaussian.mean.detach(), gaussian.stddev.detach()) for gaussian in gaussians]
    for i in range(N):
        others = [kl_divergence(fixed[j], gaussians[i]).sum(-1).mean() for j in range(N) if j != i]
        penalty = beta * sum(others)
        assert_close(info["kl_penalty"][i], penalty.detach())
        gradients = torch.autograd.grad(penalty, [*nets[i].parameters()])
        for pull, gradient in zip(pulls, gradients, strict=True):
            assert_close(pull[i].squeeze(0), -gradient.t(), rtol=1e-4, atol=1e-6)
        assert sum(gradient.abs().sum() for gradient in gradients) > 0.01


# Distillation


def filled(policy, steps=300):
    """A buffer of states and of actions tanh(policy(states) + 0.3 noise)."""
    rb, rng = ReplayBuffer(N, O, A, steps, torch.device("cpu")), np.random.default_rng(0)
    for _ in range(steps):
        obs = rng.normal(size=(N, O))
        rb.add(obs, np.tanh(policy(obs) + 0.3 * rng.normal(size=(N, A))), np.zeros(N), obs, np.zeros(N))
    return rb


def linear_policy(obs):
    return 0.5 * obs[..., :A] - 0.2


def test_distillation_leaves_all_policies_equal_to_the_fitted_one():
    args = Args(batch_size=64, hidden_sizes=(32,), distill_steps=1500)
    agent, optimizers = learner(args)
    distill(agent, optimizers, filled(linear_policy), args)
    for p, c in zip(agent.actor.parameters(), agent.center.parameters(), strict=True):
        assert all(torch.equal(one, c[0]) for one in p)
    obs = torch.randn(20, O).clamp(-1, 1)
    mean, log_std = agent.actor(obs.unsqueeze(0))
    # The policy that made the actions.
    assert_close(mean, linear_policy(obs).expand(N, -1, -1), atol=0.25, rtol=0)
    assert_close(log_std.exp(), torch.full_like(log_std, 0.3), atol=0.1, rtol=0)


def test_distillation_is_a_step_towards_the_data_of_all_tasks(unstack):
    """By the likelihood of their actions under torch.distributions."""
    args = Args(batch_size=16, hidden_sizes=(8,), distill_steps=1)
    agent, optimizers = learner(args)
    optimizers["center"], plain = torch.optim.SGD(agent.center.parameters(), lr=1.0), unstack(agent.center.net, 0)
    before, rb, state = copy.deepcopy(agent.center), filled(linear_policy), torch.get_rng_state()
    distill(agent, optimizers, rb, args)
    torch.set_rng_state(state)
    data = rb.sample(16)
    mean, log_std = plain(data.obs.reshape(-1, O)).chunk(2, dim=-1)
    loss = -Normal(mean, log_std.exp()).log_prob(torch.atanh(data.actions.reshape(-1, A))).sum(-1).mean()
    gradients = torch.autograd.grad(loss, [*plain.parameters()])
    for p, q, gradient in zip(agent.center.parameters(), before.parameters(), gradients, strict=True):
        assert_close((p - q).squeeze(0), -gradient.t().reshape(p[0].shape), rtol=1e-4, atol=1e-6)


def test_distillation_survives_actions_at_the_bounds():
    """As random and saturated actions are: tanh gives 1 and -1 in single precision."""
    args = Args(batch_size=16, hidden_sizes=(8,), distill_steps=20)
    agent, optimizers = learner(args)
    distill(agent, optimizers, filled(lambda obs: 100 * obs[..., :A]), args)
    assert all(p.isfinite().all() for p in agent.parameters())


def test_optimizers_outlive_a_distillation():
    """The centre's goes on with the next one, the policies' as if nothing had been."""
    args = Args(batch_size=16, hidden_sizes=(8,), distill_steps=7)
    agent, optimizers = learner(args)
    update(agent, optimizers, batch(), args)
    before = {name: copy.deepcopy(optimizer.state_dict()["state"]) for name, optimizer in optimizers.items()}
    assert before["actor"] and not before["center"]
    critics = [p.clone() for p in agent.qf.parameters()]
    rb = filled(linear_policy)
    for times in (1, 2):
        distill(agent, optimizers, rb, args)
        for state in optimizers["center"].state.values():
            assert state["step"] == 7 * times
    for name in ("q", "actor", "alpha"):
        for number, state in optimizers[name].state_dict()["state"].items():
            assert all(torch.equal(value, before[name][number][key]) for key, value in state.items())
    assert all(torch.equal(p, q) for p, q in zip(agent.qf.parameters(), critics, strict=True))


def test_defaults():
    args = Args()
    assert (args.kl_coef, args.distill_period, args.distill_steps) == (0.01, 0, 100)


@pytest.mark.parametrize("frequency", [1, 3])
def test_when_policies_are_distilled(tmp_path, monkeypatch, frequency):
    """Every 200 steps, or at the next turn that trains; not before learning starts."""
    seen, N = [], len(envs.TASKS["PointReach-v0"])
    monkeypatch.setattr(qmp_dnc, "distill", lambda agent, optimizers, rb, args: seen.append(rb.added * N))
    flags = "--total-timesteps 900 --learning-starts 250 --batch-size 4 --hidden-sizes 8 --eval-episodes 1 --no-cuda"
    flags += f" --distill-period 200 --train-frequency {frequency} --run-dir {tmp_path / 'run'}"
    qmp_dnc.main(flags.split())
    trains = [step for step in range(N, 901, N) if step > 250 and step // N % frequency == 0]
    assert seen == [next(step for step in trains if step >= multiple) for multiple in (400, 600, 800)]
