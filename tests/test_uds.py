"""qmp_uds.py: borrowed transitions, which of them count, and how."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import envs
import qmp_sac
import qmp_uds
from envs.pointreach import GOALS
from qmp_uds import Args, Batch, Critic, ReplayBuffer, make_agent, share, update, weighted_mean

N, B, O, A = 3, 200, 4, 2


def filled(N=N, steps=50):
    """A buffer in which every number of a transition tells its task and step: 1000 task + step, next_obs negative."""
    rb = ReplayBuffer(N, 64, O, A, torch.device("cpu"))
    for step in range(steps):
        mark = 1000.0 * np.arange(N) + step
        rb.add(np.tile(mark[:, None], O), np.tile(mark[:, None], A), mark, -np.tile(mark[:, None], O), mark % 2)
    return rb


def test_borrowed_transitions_are_other_tasks_relabelled():
    rb, min_rewards = filled(), torch.tensor([-1.0, -2.0, -3.0])
    data = rb.sample_others(B, min_rewards)
    assert torch.equal(data.rewards, min_rewards[:, None].expand(N, B))
    mark = data.obs[:, :, 0]
    owners, steps = (mark // 1000).long(), mark % 1000
    for i in range(N):
        assert set(owners[i].tolist()) == set(range(N)) - {i}
        counts = owners[i].bincount(minlength=N)
        assert counts.max() < 0.65 * B  # about half from each of the two others
    assert len(steps.unique()) == 50
    assert torch.equal(data.next_obs, -data.obs) and torch.equal(data.actions, data.obs[..., :A])
    assert torch.equal(data.terminations, steps % 2)


def test_a_single_task_borrows_nothing():
    rb = filled(N=1)
    data, borrowed = rb.sample(5), rb.sample_others(5, torch.zeros(1))
    _, weights = share(Critic(1, O, A, (8,)), data, borrowed, 0.0)
    assert weights.tolist() == [[1.0] * 5 + [0.0] * 5]


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 1.0])
def test_what_counts(quantile):
    torch.manual_seed(0)
    qf = Critic(N, O, A, (16,))
    data, borrowed = (
        Batch(torch.randn(N, B, O), torch.randn(N, B, A), torch.randn(N, B), torch.randn(N, B, O), torch.zeros(N, B))
        for _ in range(2)
    )
    joined, weights = share(qf, data, borrowed, quantile)
    for field, own, other in zip(joined, data, borrowed, strict=True):
        assert torch.equal(field, torch.cat([own, other], 1))
    assert (weights[:, :B] == 1).all()
    for i in range(N):
        own = torch.minimum(*qf(data.obs, data.actions))[i].detach().numpy()
        others = torch.minimum(*qf(borrowed.obs, borrowed.actions))[i].detach().numpy()
        want = others > np.quantile(own, quantile) if quantile else np.ones(B, bool)
        assert (weights[i, B:].numpy() != want).sum() <= 1  # but for rounding at the very quantile
    shared = weights[:, B:].mean()
    assert {0.0: shared == 1, 0.3: 0.6 < shared < 0.8, 0.9: 0.02 < shared < 0.2, 1.0: shared < 0.02}[quantile]


def test_weighted_mean():
    values, weights = torch.randn(2, N, B), (torch.rand(N, B) < 0.5).float()
    for i in range(N):
        assert_close(weighted_mean(values, weights)[1, i], values[1, i, weights[i] > 0].mean())


def test_without_borrowed_transitions_the_update_is_sac(monkeypatch):
    """All weights of borrowed transitions 0: the same step as qmp_sac.py's on the tasks' own batches."""
    B = 8
    args, sac_args = Args(hidden_sizes=(16,)), qmp_sac.Args(hidden_sizes=(16,))
    torch.manual_seed(0)
    agent = make_agent(N, O, A, args, torch.device("cpu"))
    torch.manual_seed(0)
    plain = qmp_sac.make_agent(N, O, A, sac_args, torch.device("cpu"))
    data, borrowed = (
        Batch(torch.randn(N, B, O), torch.rand(N, B, A), torch.randn(N, B), torch.randn(N, B, O), torch.zeros(N, B))
        for _ in range(2)
    )
    none = torch.cat([torch.ones(N, B), torch.zeros(N, B)], 1)
    monkeypatch.setattr(qmp_uds, "share", lambda qf, *batches: (share(qf, *batches)[0], none))
    noise = torch.randn(2, N, 2 * B, A)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: noise)
        info = update(agent, data, borrowed, args)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda *args, **kwargs: noise[:, :, :B])
        expected = qmp_sac.update(plain, qmp_sac.Batch(*data), sac_args)
    assert info["shared"].tolist() == [0, 0, 0]
    for name, value in expected.items():
        assert_close(info[name], value, rtol=1e-4, atol=1e-5)
    for a, b in zip(agent[:3], plain[:3], strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_minimum_rewards_are_lower_bounds():
    assert envs.MIN_REWARDS.keys() == envs.TASKS.keys()
    for env_id, bounds in envs.MIN_REWARDS.items():
        assert len(bounds) == len(envs.TASKS[env_id])
    for env_id in ("PointReach-v0", "PointReach2-v0", "PointReach8-v0"):
        vec = envs.make_vec(env_id, 1)
        vec.reset()
        lowest = np.zeros(vec.num_envs)
        for corner in ((1, -1), (-1, 1), (-1, -1)):
            for _ in range(30):
                lowest = np.minimum(lowest, vec.step(np.tile(np.float32(corner), (vec.num_envs, 1)))[1])
        assert (lowest >= envs.MIN_REWARDS[env_id]).all() and lowest[-1] == 0
        corners = np.array([(1, -1), (-1, 1), (-1, -1)])
        for name, reward in zip(envs.TASKS[env_id][:-1], lowest, strict=False):
            assert reward == pytest.approx(-10 * np.linalg.norm(corners - GOALS[name], axis=1).max())


def test_a_users_environment_needs_its_minimum(tmp_path, capsys):
    flags = ["--env-id", "test_envs:make_drift", "--total-timesteps", "120", "--learning-starts", "60"]
    flags += ["--hidden-sizes", "8", "--batch-size", "4"]
    with pytest.raises(SystemExit) as stop:
        qmp_uds.main([*flags, "--run-dir", str(tmp_path / "run")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "--min-reward" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
    qmp_uds.main([*flags, "--run-dir", str(tmp_path / "run"), "--min-reward", "-1"])
