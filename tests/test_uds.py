"""qmp_uds.py: borrowed transitions, which of them count, and how."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from test_runs import Drift
from torch.testing import assert_close

import envs
import qmp_sac
import qmp_uds
from envs.pointreach import GOALS, SPARSE, STEP
from qmp_uds import Args, Batch, Critic, ReplayBuffer, share, update

N, B, O, A = 3, 200, 4, 2
SHORT = "--total-timesteps 120 --learning-starts 60 --hidden-sizes 8 --batch-size 4 --eval-episodes 1 --no-cuda".split()


def random_batches(B):
    """Two random batches, the tasks' own and borrowed ones."""
    shapes = ((N, B, O), (N, B, A), (N, B), (N, B, O))
    return [Batch(*(torch.randn(*shape).tanh() for shape in shapes), torch.zeros(N, B)) for _ in range(2)]


class Ending(Drift):
    """Its episodes end in the step, and with the success, that `end` says."""

    def __init__(self, task, length, end):
        super().__init__(task)
        self.length, self.end = length, end

    def step(self, action):
        self.steps += 1
        last = self.steps == self.length
        success = {"success": last, "fall": self.steps == 1, "half": 0.5, "limit": last}[self.end]
        obs = np.array([100 * self.task + self.steps], np.float32)
        return obs, 5.0, last and self.end != "limit", last and self.end == "limit", {"success": float(success)}


LENGTHS = {"success": 2, "fall": 3, "half": 4, "limit": 5}


def make_endings(seed, vectorization, render_mode):
    thunks = [lambda i=i, end=end: Ending(i, LENGTHS[end], end) for i, end in enumerate(LENGTHS)]
    return SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)


def filled(N=N, steps=50):
    """A buffer in which every number of a transition tells its task and step: 1000 task + step, next_obs negative.

    Odd steps are terminations, and every other of these is everybody's.
    """
    rb = ReplayBuffer(N, O, A, 64, torch.device("cpu"))
    for step in range(steps):
        mark = 1000.0 * np.arange(N) + step
        states = np.tile(mark[:, None], O)
        rb.add(states, states[:, :A], mark, -states, mark % 2, mark % 4 == 1)
    return rb


@pytest.mark.parametrize("steps", [50, 80])
def test_borrowed_transitions_are_other_tasks_relabelled(steps):
    """Of a buffer that is not full, and of one that has begun to forget."""
    torch.manual_seed(0)
    rb, min_rewards, kept = filled(steps=steps), torch.tensor([-1.0, -2.0, -3.0]), range(max(0, steps - 64), steps)
    data = rb.sample_others(B, min_rewards)
    assert torch.equal(data.rewards, min_rewards[:, None].expand(N, B))
    mark = data.obs[:, :, 0]
    owners, steps = (mark // 1000).long(), mark % 1000
    for i in range(N):
        assert set(owners[i].tolist()) == set(range(N)) - {i}
        counts = owners[i].bincount(minlength=N)
        assert counts.max() < 0.65 * B  # about half from each of the two others
    assert set(steps.unique().tolist()) == set(kept)
    assert torch.equal(data.next_obs, -data.obs) and torch.equal(data.actions, data.obs[..., :A])
    assert torch.equal(data.terminations, (steps % 4 == 1).float())
    own = rb.sample(B)
    assert torch.equal(own.rewards, own.obs[:, :, 0]) and torch.equal(own.terminations, own.rewards % 2)


def test_success_ends_the_own_task_alone(tmp_path, monkeypatch):
    """In a run: what each task learns from, by task and step of the episode, and from whom."""
    seen, lengths = [], torch.tensor([*LENGTHS.values()])
    monkeypatch.setattr(qmp_uds, "share", lambda *inputs: seen.append(inputs[1:3]) or share(*inputs))
    flags = [*SHORT, "--total-timesteps", "400", "--env-id", "test_uds:make_endings", "--min-reward", "-1"]
    qmp_uds.main([*flags, "--run-dir", str(tmp_path / "run")])
    for number, terminating in enumerate((["success", "fall", "half"], ["fall", "half"])):  # own batches, borrowed ones
        batches = [Batch(*(field.flatten(0, 1) for field in batch[number])) for batch in seen]
        batch = Batch(*(torch.cat(fields) for fields in zip(*batches, strict=True)))
        owners, steps = (batch.next_obs[:, 0] // 100).long(), batch.next_obs[:, 0] % 100
        for owner, end in enumerate(LENGTHS):
            last = (steps == lengths[owners]) & (owners == owner)
            assert last.any() and (batch.terminations[last] == (end in terminating)).all()
        assert not batch.terminations[steps != lengths[owners]].any()
        assert (batch.rewards == (-1 if number else 5)).all()


def test_a_single_task_borrows_nothing():
    rb = filled(N=1)
    data, borrowed = rb.sample(5), rb.sample_others(5, torch.zeros(1))
    _, weights = share(Critic(1, O, A, (8,)), data, borrowed, 0.0)
    assert weights.tolist() == [[1.0] * 5 + [0.0] * 5]


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 1.0])
def test_what_counts(quantile):
    torch.manual_seed(0)
    qf = Critic(N, O, A, (16,))
    data, borrowed = random_batches(B)
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


def sac_on(data, make_learner, fixed_noise, noise):
    """What qmp_sac.py's update of the same agent on `data` logs, and its agent."""
    torch.manual_seed(0)
    args = qmp_sac.Args(hidden_sizes=(16,))
    agent, optimizers = make_learner(qmp_sac, N, O, A, args)
    with fixed_noise(noise):
        info = qmp_sac.update(agent, optimizers, qmp_sac.Batch(*data), args)
    return info, agent


@pytest.mark.parametrize("kept", [True, False])
def test_update_is_that_of_sac_on_what_counts(monkeypatch, make_learner, fixed_noise, kept):
    """By default the tasks' own and all borrowed transitions; with weights of 0 the own ones alone."""
    B, args = 8, Args(hidden_sizes=(16,))
    data, borrowed = (Batch(*(field.double() for field in fields)) for fields in random_batches(B))
    torch.manual_seed(0)
    agent, optimizers = make_learner(qmp_uds, N, O, A, args)
    if not kept:
        none = torch.cat([torch.ones(N, B), torch.zeros(N, B)], 1)
        monkeypatch.setattr(qmp_uds, "share", lambda *inputs: (share(*inputs)[0], none))
    noise = torch.randn(2, N, 2 * B, A, dtype=torch.float64)
    with fixed_noise(noise):
        info = update(agent, optimizers, data, borrowed, args)
    counting = Batch(*(torch.cat(fields, 1) for fields in zip(data, borrowed, strict=True))) if kept else data
    expected, plain = sac_on(counting, make_learner, fixed_noise, noise if kept else noise[:, :, :B])
    assert info["shared"].tolist() == [float(kept)] * N
    assert info.keys() - expected.keys() == {"shared"}
    for name, values in expected.items():
        assert values.shape == (N,) and not info[name].requires_grad
        assert_close(info[name], values, rtol=1e-9, atol=1e-11)
    for p, q in zip(agent.parameters(), plain.parameters(), strict=True):
        assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_update_filters_by_its_quantile(make_learner):
    """With the quantile of the arguments, by the critics as they are before the update."""
    torch.manual_seed(0)
    data, borrowed = (Batch(*(field.double() for field in fields)) for fields in random_batches(B))
    shared = []
    for quantile in (0.0, 0.5, 0.9):
        args = Args(hidden_sizes=(16,), sharing_quantile=quantile)
        agent, optimizers = make_learner(qmp_uds, N, O, A, args)
        _, weights = share(agent.qf, data, borrowed, quantile)
        shared.append(update(agent, optimizers, data, borrowed, args)["shared"])
        assert_close(shared[-1], weights[:, B:].mean(1).double())
    assert (shared[0] == 1).all() and (shared[0] > shared[1]).all() and (shared[1] > shared[2]).all()


# Minimum rewards


@pytest.mark.parametrize("env_id", ["PointReach-v0", "PointReach2-v0", "PointReach9-v0"])
def test_minimum_rewards_are_lower_bounds(env_id):
    vec, tasks = envs.make_vec(env_id, 1), envs.TASKS[env_id]
    corners = np.array([(1, -1), (-1, -1), (-1, 1), (1, 1)])
    vec.reset()
    lowest = np.full(len(tasks), np.inf)
    for corner in corners:
        for _ in range(45):
            lowest = np.minimum(lowest, vec.step(np.tile(np.float32(corner), (len(tasks), 1)))[1])
    assert (lowest >= vec.min_rewards).all()
    for name, reward, bound in zip(tasks, lowest, vec.min_rewards, strict=True):
        if name == SPARSE:
            assert reward == bound
        else:
            assert reward == pytest.approx(-np.linalg.norm(corners - GOALS[name], axis=1).max() / STEP)


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--env-id PointReach-v0", envs.make_vec("PointReach-v0", 1).min_rewards),
        ("--env-id PointReach-v0 --min-reward -3.5", [-3.5] * len(envs.TASKS["PointReach-v0"])),
        ("--env-id test_runs:make_drift --min-reward 0", [0.0] * 3),
    ],
)
def test_borrowed_transitions_get_the_minimum_reward(tmp_path, monkeypatch, flags, expected):
    """That of the environment, or the one asked for."""
    seen = []
    monkeypatch.setattr(qmp_uds, "share", lambda *inputs: seen.append(inputs[2].rewards) or share(*inputs))
    qmp_uds.main([*SHORT, *flags.split(), "--run-dir", str(tmp_path / "run")])
    assert len(seen) == 60 // len(expected)  # an update in every turn of the loop
    for rewards in seen:
        assert torch.equal(rewards, torch.tensor(expected).unsqueeze(1).expand(-1, 4))


def test_a_users_environment_needs_its_minimum(tmp_path):
    flags = [*SHORT, "--env-id", "test_runs:make_drift", "--run-dir", str(tmp_path / "run")]
    with pytest.raises(gym.error.Error, match="--min-reward"):
        qmp_uds.main(flags)
    assert not (tmp_path / "run").exists()
