"""qmp_dnc.py: divergences between policies, their weights, and distillation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_resume import SHORT
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

import qmp_dnc
from qmp_dnc import Actor, Adam, Args, ReplayBuffer, distill, kl_divergences, kl_penalty, read_kl_coef, squash

F64 = torch.float64


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10_000))
def test_divergences_are_those_of_torch(N, S, A, seed):
    torch.manual_seed(seed)
    mean, log_std = 3 * torch.randn(N, S, A, dtype=F64), torch.randn(N, S, A, dtype=F64)
    got = kl_divergences(mean, log_std)
    for i in range(N):
        for j in range(N):
            want = kl_divergence(Normal(mean[j], log_std[j].exp()), Normal(mean[i], log_std[i].exp())).sum(-1)
            assert_close(got[i, j], want)


def test_identical_policies_do_not_diverge():
    mean, log_std = torch.randn(1, 5, 2).expand(3, 5, 2), torch.randn(1, 5, 2).expand(3, 5, 2)
    assert_close(kl_divergences(mean, log_std), torch.zeros(3, 3, 5))


def test_gradient_goes_to_the_policy_that_is_pulled():
    torch.manual_seed(0)
    N, B, O, A = 3, 4, 5, 2
    actor, obs, beta = Actor(N, O, A, (8,)), torch.randn(N, B, O), torch.rand(N, N).fill_diagonal_(0)
    penalty = kl_penalty(actor, obs, beta)
    # By hand: the states of all tasks, every pair, the other policy held fixed.
    states = obs.reshape(N * B, O)
    mean, log_std = actor(states.expand(N, -1, -1))
    for i in range(N):
        want = sum(
            beta[i, j]
            * kl_divergence(
                Normal(mean[j].detach(), log_std[j].detach().exp()), Normal(mean[i], log_std[i].exp())
            ).sum(-1).mean()
            for j in range(N) if j != i
        )  # fmt: skip
        assert_close(penalty[i], want)
        gradients = torch.autograd.grad(penalty[i], [*actor.parameters()], retain_graph=True)
        expected = torch.autograd.grad(want, [*actor.parameters()], retain_graph=True)
        for gradient, other in zip(gradients, expected, strict=True):
            assert_close(gradient, other)
            assert gradient[i].abs().sum() > 0
            assert gradient[[j for j in range(N) if j != i]].abs().sum() == 0


def test_divergence_before_tanh_is_that_of_the_policies():
    """By Monte Carlo: E under pi_j of log pi_j - log pi_i, with the densities of the squashed actions."""
    torch.manual_seed(0)
    mean, log_std = torch.tensor([[[0.3]], [[-0.2]]], dtype=F64), torch.tensor([[[-0.5]], [[0.1]]], dtype=F64)
    noise = torch.randn(200_000, 1, dtype=F64)
    actions, log_prob_j = squash(mean[1], log_std[1], noise)
    x = torch.atanh(actions)
    _, log_prob_i = squash(mean[0], log_std[0], (x - mean[0]) / log_std[0].exp())
    difference = log_prob_j - log_prob_i
    error = 5 * difference.std() / len(difference) ** 0.5
    assert abs(difference.mean() - kl_divergences(mean, log_std)[0, 1, 0]) < error


def test_distillation_leaves_all_policies_equal_to_the_fitted_one():
    torch.manual_seed(0)
    N, O, A = 3, 2, 1
    args = Args(batch_size=32, policy_lr=1e-2, distill_epochs=60)
    rb = ReplayBuffer(N, 300, O, A, torch.device("cpu"))
    for _ in range(300):
        obs = np.random.default_rng(rb.size).normal(size=(N, O))
        actions = np.tanh(0.5 * obs[:, :1] - 0.2 + 0.3 * np.random.default_rng(1000 + rb.size).normal(size=(N, 1)))
        rb.add(obs, actions, np.zeros(N), obs, np.zeros(N))
    actor, center = Actor(N, O, A, (32,)), Actor(1, O, A, (32,))
    optimizer = Adam(actor.parameters())
    optimizer.state[actor.net[0].weight] = {"step": torch.tensor(5.0)}
    distill(actor, center, optimizer, rb, args)
    for p, c in zip(actor.parameters(), center.parameters(), strict=True):
        assert all(torch.equal(one, c[0]) for one in p)
    assert not optimizer.state
    obs = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.5]])
    mean, log_std = actor(obs.expand(N, -1, -1))
    assert_close(mean[1, :, 0], 0.5 * obs[:, 0] - 0.2, atol=0.15, rtol=0)  # the policy that made the actions
    assert_close(log_std.exp(), torch.full_like(log_std, 0.3), atol=0.1, rtol=0)


@pytest.mark.parametrize("frequency, turns", [(1, [50, 100, 150]), (3, [51, 102, 150])])
def test_when_policies_are_distilled(tmp_path, monkeypatch, frequency, turns):
    """Every 200 steps of four tasks, or at the next turn that trains."""
    seen = []
    monkeypatch.setattr(qmp_dnc, "distill", lambda actor, center, optimizer, rb, args: seen.append(rb.size))
    flags = f"--distill-period 200 --train-frequency {frequency} --run-dir {tmp_path / 'run'}"
    qmp_dnc.main([*SHORT, *flags.split()])
    assert seen == turns


def test_weights_of_the_divergences(tmp_path, capsys):
    device = torch.device("cpu")
    assert not read_kl_coef(Args(kl_coef="0"), 3, device).any()
    assert read_kl_coef(Args(kl_coef="0.5"), 2, device).tolist() == [[0, 0.5], [0.5, 0]]
    table = np.array([[9, 1, 2], [3, 9, 4], [5, 6, 9]])
    for name, delimiter in (("beta.csv", ","), ("beta.txt", " ")):
        np.savetxt(tmp_path / name, table, delimiter=delimiter)
        got = read_kl_coef(Args(kl_coef=str(tmp_path / name)), 3, device)
        assert got.tolist() == [[0, 1, 2], [3, 0, 4], [5, 6, 0]]
    for coef, N in ((str(tmp_path / "beta.csv"), 4), ("-1", 2), ("nan", 2), ("no_such_file", 2)):
        with pytest.raises(SystemExit) as stop:
            read_kl_coef(Args(kl_coef=coef), N, device)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and "--kl-coef" in error and error.count("\n") == 1
