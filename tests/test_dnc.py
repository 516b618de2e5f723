"""qmp_dnc.py: the KL penalty between policies, its weight, and distillation."""

import copy
import functools
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import F64, checkpoint, make_learner, random_batch, rows, same, train, unstack
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

import qmp_dnc
from qmp_dnc import Args, ReplayBuffer, distill, kl_sums, update

N, B, O, A = 3, 8, 4, 2
batch = functools.partial(random_batch, qmp_dnc, N, B, O, A)


def learner(args):
    torch.manual_seed(0)
    return make_learner(qmp_dnc, N, O, A, args)


def sums_of_torch(mean, log_std):
    """Sum over j of KL(pi_j || pi_i) [N, S], pi_j fixed, by torch.distributions in float64."""
    policies = [Normal(m, s.exp()) for m, s in zip(mean.double(), log_std.double(), strict=True)]
    fixed = [Normal(policy.mean.detach(), policy.stddev.detach()) for policy in policies]
    sums = [sum(kl_divergence(pi_j, pi_i) for pi_j in fixed) for pi_i in policies]
    return torch.stack(sums).sum(-1)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_kl_is_that_of_torch(N, S, A, seed):
    torch.manual_seed(seed)
    mean, log_std = 3 * torch.randn(N, S, A, dtype=F64), torch.randn(N, S, A, dtype=F64)
    assert_close(kl_sums(mean, log_std), sums_of_torch(mean, log_std))


@pytest.mark.parametrize("far, apart, narrow", [(0, 1, 0), (1, 1e-3, -1), (100, 1e-3, -7)])
def test_kl_loses_no_digits(far, apart, narrow):
    """Of fifty close policies, with means up to a million times as far out as they spread."""
    torch.manual_seed(0)
    mean = (far * torch.randn(1, 20, A) + apart * torch.randn(50, 20, A)).requires_grad_()
    log_std = (narrow + min(apart, 0.1) * torch.randn(50, 20, A)).requires_grad_()
    got, want = kl_sums(mean, log_std), sums_of_torch(mean, log_std)
    assert_close(got, want, rtol=1e-7, atol=1e-12)
    gradients = [torch.autograd.grad(x.sum(), (mean, log_std)) for x in (got, want)]
    for ours, theirs in zip(*gradients, strict=True):
        assert_close(ours, theirs, rtol=1e-6, atol=1e-12 * float(theirs.abs().max()))


def test_an_update_pulls_each_policy_towards_the_others():
    """By beta times the mean over all tasks' states of the sum over j of KL(pi_j || pi_i)."""
    beta, steps = 0.3, {}
    for kl_coef in (0.0, beta):
        args = Args(hidden_sizes=(8,), kl_coef=kl_coef)
        agent, optimizers = learner(args)
        before = copy.deepcopy(agent.actor)
        optimizers["actor"] = torch.optim.SGD(agent.actor.parameters(), lr=1.0)
        data = batch()
        info = update(agent, optimizers, data, args)
        pairs = zip(agent.actor.parameters(), before.parameters(), strict=True)
        steps[kl_coef] = [p - q for p, q in pairs]
        assert info["kl_penalty"].shape == (N,)
        assert (info["kl_penalty"] > 0).all() == (kl_coef > 0)
    pulls = [with_kl - without for without, with_kl in zip(steps[0.0], steps[beta], strict=True)]

    nets = [unstack(before, i) for i in range(N)]
    outputs = torch.stack([net(data.obs.reshape(N * B, O)) for net in nets])
    penalties = beta * sums_of_torch(*outputs.chunk(2, dim=-1)).mean(-1)
    assert_close(info["kl_penalty"].double(), penalties.detach(), rtol=1e-6, atol=0)
    for i in range(N):
        gradients = torch.autograd.grad(penalties[i], [*nets[i].parameters()], retain_graph=True)
        for pull, gradient in zip(pulls, gradients, strict=True):
            assert_close(pull[i].squeeze(0), -gradient.t(), rtol=1e-5, atol=1e-8)
        assert sum(gradient.abs().sum() for gradient in gradients) > 0.01


def test_without_penalty_it_is_qmp_sac(tmp_path):
    train("qmp_sac", tmp_path / "sac")
    train("qmp_dnc", tmp_path / "dnc", "--kl-coef 0")
    sac, dnc = (checkpoint(tmp_path / name)["agent"] for name in ("sac", "dnc"))
    center = {name for name in dnc if name.startswith("center.")}
    assert center and same(sac, {name: dnc[name] for name in dnc.keys() - center})
    assert rows(tmp_path / "sac").equals(rows(tmp_path / "dnc"))


def filled(policy, steps=300):
    """A buffer of states and of actions tanh(policy(states) + 0.3 noise)."""
    rb, rng = ReplayBuffer(N, O, A, steps, torch.device("cpu")), np.random.default_rng(0)
    for _ in range(steps):
        obs = rng.normal(size=(N, O))
        actions = np.tanh(policy(obs) + 0.3 * rng.normal(size=(N, A)))
        rb.add(obs, actions, np.zeros(N), obs, np.zeros(N))
    rb.data = type(rb.data)(*(field.double() for field in rb.data))
    return rb


def linear_policy(obs):
    return 0.5 * obs[..., :A] - 0.2


def test_distillation_leaves_all_policies_equal_to_the_fitted_one():
    args = Args(batch_size=64, hidden_sizes=(32,), distill_steps=600, policy_lr=2e-3)
    agent, optimizers = learner(args)
    distill(agent, optimizers, filled(linear_policy), args)
    for p, c in zip(agent.actor.parameters(), agent.center.parameters(), strict=True):
        assert all(torch.equal(one, c[0]) for one in p)
    obs = torch.randn(20, O, dtype=F64).clamp(-1, 1)
    mean, log_std = agent.actor(obs.unsqueeze(0))
    # The policy that made the actions.
    assert_close(mean, linear_policy(obs).expand(N, -1, -1), atol=0.25, rtol=0)
    assert_close(log_std.exp(), torch.full_like(log_std, 0.3), atol=0.1, rtol=0)


def test_distillation_is_a_step_towards_the_data_of_all_tasks():
    """By the likelihood of their actions under torch.distributions."""
    args = Args(batch_size=16, hidden_sizes=(8,), distill_steps=1)
    agent, optimizers = learner(args)
    optimizers["center"] = torch.optim.SGD(agent.center.parameters(), lr=1.0)
    plain, before, rb = unstack(agent.center, 0), copy.deepcopy(agent.center), filled(linear_policy)
    state = torch.get_rng_state()
    distill(agent, optimizers, rb, args)
    torch.set_rng_state(state)
    data = rb.sample(16)
    mean, log_std = plain(data.obs.reshape(-1, O)).chunk(2, dim=-1)
    x = torch.atanh(data.actions.reshape(-1, A))
    loss = -Normal(mean, log_std.exp()).log_prob(x).sum(-1).mean()
    gradients = torch.autograd.grad(loss, [*plain.parameters()])
    pairs = zip(agent.center.parameters(), before.parameters(), gradients, strict=True)
    for p, q, gradient in pairs:
        assert_close((p - q).squeeze(0), -gradient.t().reshape(p[0].shape), rtol=1e-4, atol=1e-6)


def test_optimizers_outlive_a_distillation_of_actions_at_the_bounds():
    """The centre's goes on with the next one, the policies' as if nothing had been.

    Random and saturated actions are at the bounds: tanh gives 1 and -1 in single precision.
    """
    args = Args(batch_size=16, hidden_sizes=(8,), distill_steps=7)
    agent, optimizers = learner(args)
    update(agent, optimizers, batch(), args)
    before = copy.deepcopy({name: x.state_dict()["state"] for name, x in optimizers.items()})
    assert before["actor"] and not before["center"]
    critics = [p.clone() for p in agent.qf.parameters()]
    rb = filled(lambda obs: 100 * obs[..., :A])
    for times in (1, 2):
        distill(agent, optimizers, rb, args)
        assert {int(state["step"]) for state in optimizers["center"].state.values()} == {7 * times}
    for name in ("q", "actor", "alpha"):
        assert same(optimizers[name].state_dict()["state"], before[name])
    assert all(torch.equal(p, q) for p, q in zip(agent.qf.parameters(), critics, strict=True))
    assert all(p.isfinite().all() for p in agent.parameters())


def test_defaults():
    args = Args()
    assert (args.kl_coef, args.distill_period, args.distill_steps) == (0.01, 0, 100)


def test_when_policies_are_distilled(tmp_path):
    """Every 200 steps, or in the next update phase; not before learning starts."""
    seen = []
    flags = "--total-timesteps 900 --learning-starts 250 --distill-period 200 --train-frequency 3"
    with mock.patch.object(qmp_dnc, "distill") as distilled:
        distilled.side_effect = lambda agent, optimizers, rb, args: seen.append(5 * rb.added)
        train("qmp_dnc", tmp_path / "run", flags)
    assert seen == [405, 600, 810]  # update phases come every 15 steps of the five tasks
