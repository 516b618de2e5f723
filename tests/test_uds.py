"""qmp_uds.py: borrowed transitions, which of them count, and how."""

from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
import torch
from helpers import F64, Drift, fixed_noise, make_learner, random_batch, train
from torch.testing import assert_close

import qmp_sac
import qmp_uds
from qmp_uds import Args, Batch, Critic, ReplayBuffer, share, update

N, B, O, A = 3, 200, 4, 2


LENGTHS = {"success": 2, "fall": 3, "half": 4, "limit": 5}


class Ending(Drift):
    """Its episodes end in the step, and with the success, that `end` says."""

    metadata = {}

    def __init__(self, task, end):
        super().__init__(task)
        self.end = end

    def step(self, action):
        self.steps += 1
        last = self.steps == LENGTHS[self.end]
        success = {"success": last, "fall": self.steps == 1, "half": 0.5, "limit": last}[self.end]
        obs = np.array([100 * self.task + self.steps], np.float32)
        ends = last and self.end != "limit", last and self.end == "limit"
        return obs, 5.0, *ends, {"success": float(success)}


def make_endings(render_mode=None):
    return {end: lambda i=i, end=end: Ending(i, end) for i, end in enumerate(LENGTHS)}


def filled(N=N, steps=50):
    """A buffer whose numbers tell task and step: 1000 task + step, next_obs negative.

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
    rb, min_rewards = filled(steps=steps), torch.tensor([-1.0, -2.0, -3.0])
    data = rb.sample_others(B, min_rewards)
    assert torch.equal(data.rewards, min_rewards[:, None].expand(N, B))
    mark = data.obs[:, :, 0]
    owners, times = (mark // 1000).long(), mark % 1000
    for i in range(N):
        assert set(owners[i].tolist()) == set(range(N)) - {i}
        # about half from each of the two others
        assert owners[i].bincount(minlength=N).max() < 0.65 * B
    assert set(times.unique().tolist()) == set(range(max(0, steps - 64), steps))
    assert torch.equal(data.next_obs, -data.obs)
    assert torch.equal(data.actions, data.obs[..., :A])
    assert torch.equal(data.terminations, (times % 4 == 1).float())
    own = rb.sample(B)
    assert torch.equal(own.rewards, own.obs[:, :, 0])
    assert torch.equal(own.terminations, own.rewards % 2)


def test_success_ends_the_own_task_alone(tmp_path):
    """In a run: what each task learns from, by task and step of the episode, and from whom."""
    lengths = torch.tensor([*LENGTHS.values()])
    with mock.patch.object(qmp_uds, "share", wraps=share) as shared:
        train("qmp_uds", tmp_path / "run", "--env-id test_uds:make_endings --min-reward -1")
    terminating = {1: ["success", "fall", "half"], 2: ["fall", "half"]}  # own batches, borrowed
    for argument, ends in terminating.items():
        batches = [call.args[argument] for call in shared.call_args_list]
        flat = [[field.flatten(0, 1) for field in batch] for batch in batches]
        batch = Batch(*(torch.cat(fields) for fields in zip(*flat, strict=True)))
        owners, steps = (batch.next_obs[:, 0] // 100).long(), batch.next_obs[:, 0] % 100
        for owner, end in enumerate(LENGTHS):
            last = (steps == lengths[owners]) & (owners == owner)
            assert last.any() and (batch.terminations[last] == (end in ends)).all()
        assert not batch.terminations[steps != lengths[owners]].any()
        assert (batch.rewards == {1: 5, 2: -1}[argument]).all()


def test_a_single_task_borrows_nothing():
    rb = filled(N=1)
    data, borrowed = rb.sample(5), rb.sample_others(5, torch.zeros(1))
    _, weights = share(Critic(1, O, A, (8,)), data, borrowed, 0.0)
    assert weights.tolist() == [[1.0] * 5 + [0.0] * 5]


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.9, 1.0])
def test_what_counts(quantile):
    """In an update, too: by the critics as they are before it."""
    torch.manual_seed(0)
    args = Args(hidden_sizes=(16,), sharing_quantile=quantile)
    agent, optimizers = make_learner(qmp_uds, N, O, A, args)
    data, borrowed = (random_batch(qmp_uds, N, B, O, A) for _ in range(2))
    joined, weights = share(agent.qf, data, borrowed, quantile)
    for field, own, other in zip(joined, data, borrowed, strict=True):
        assert torch.equal(field, torch.cat([own, other], 1))
    assert (weights[:, :B] == 1).all()
    for i in range(N):
        own = torch.minimum(*agent.qf(data.obs, data.actions))[i].detach().numpy()
        others = torch.minimum(*agent.qf(borrowed.obs, borrowed.actions))[i].detach().numpy()
        want = others > np.quantile(own, quantile) if quantile else np.ones(B, bool)
        # But for rounding at the very quantile.
        assert (weights[i, B:].numpy() != want).sum() <= 1
    low, high = {0.0: (1, 1), 0.3: (0.6, 0.8), 0.9: (0.02, 0.2), 1.0: (0, 0.02)}[quantile]
    assert low <= weights[:, B:].mean() <= high
    shared = update(agent, optimizers, data, borrowed, args)["shared"]
    assert_close(shared, weights[:, B:].mean(1).double())


@pytest.mark.parametrize("kept", [True, False])
def test_update_is_that_of_sac_on_what_counts(kept):
    """By default the own and all borrowed transitions; with weights of 0 the own ones alone."""
    B, args = 8, Args(hidden_sizes=(16,))
    data, borrowed = (random_batch(qmp_uds, N, B, O, A) for _ in range(2))
    torch.manual_seed(0)
    agent, optimizers = make_learner(qmp_uds, N, O, A, args)
    joined = Batch(*(torch.cat(fields, 1) for fields in zip(data, borrowed, strict=True)))
    weights = torch.cat([torch.ones(N, B), torch.full((N, B), float(kept))], 1)
    noise = torch.randn(2, N, 2 * B, A, dtype=F64)
    with fixed_noise(noise), mock.patch.object(qmp_uds, "share", wraps=share) as shared:
        if not kept:
            shared.side_effect = lambda *_: (joined, weights)
        info = update(agent, optimizers, data, borrowed, args)

    torch.manual_seed(0)
    plain, plain_optimizers = make_learner(qmp_sac, N, O, A, args)
    counting = joined if kept else data
    with fixed_noise(noise if kept else noise[:, :, :B]):
        expected = qmp_sac.update(plain, plain_optimizers, qmp_sac.Batch(*counting), args)
    assert info["shared"].tolist() == [float(kept)] * N
    assert info.keys() - expected.keys() == {"shared"}
    for name, values in expected.items():
        assert values.shape == (N,) and not info[name].requires_grad
        assert_close(info[name], values, rtol=1e-9, atol=1e-11)
    for p, q in zip(agent.parameters(), plain.parameters(), strict=True):
        assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_borrowed_transitions_get_the_minimum_reward_of_the_environment(tmp_path):
    minimum = torch.tensor([-50.0, -50, -50, -50, -1])
    with mock.patch.object(qmp_uds, "share", wraps=share) as shared:
        train("qmp_uds", tmp_path / "run", "--batch-size 4")
    assert shared.call_count == (600 - 80) // 5  # an update in every iteration
    for call in shared.call_args_list:
        assert torch.equal(call.args[2].rewards, minimum[:, None].expand(-1, 4))


def test_a_users_environment_needs_its_minimum(tmp_path):
    with pytest.raises(gym.error.Error, match="--min-reward"):
        train("qmp_uds", tmp_path / "run", "--env-id helpers:make_drift")
    assert not (tmp_path / "run").exists()
