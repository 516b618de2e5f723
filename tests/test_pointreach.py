"""envs/pointreach.py: rewards and success by number, a layout that asks for a Q-switch."""

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT

from envs.pointreach import COLORS, GOALS, RADIUS, SPARSE, STEP, TASKS_OF_9, PointReach

HELPER = "corner-north-east"


def task_named(name):
    return PointReach(TASKS_OF_9.index(name), tasks=TASKS_OF_9)


def at(task, x, y, action=(0, 0)):
    """Reward and success of the task of that name, for an action at (x, y)."""
    env = task_named(task)
    env.reset(seed=0)
    env.position = np.array([x, y])
    _, reward, terminated, truncated, info = env.step(np.array(action, dtype=np.float32))
    assert not (terminated or truncated)
    return reward, info["success"]


def successes(task, name):
    """In how many of five episodes a policy succeeds that goes straight to the goal of `name`."""
    env, count = task_named(task), 0
    for episode in range(5):
        env.reset(seed=episode)
        steps = [env.step((GOALS[name] - env.position) / STEP) for _ in range(50)]
        count += any(info["success"] for *_, info in steps)
    return count


def test_rewards_and_success():
    assert at(HELPER, 0.4, 0.3) == (pytest.approx(-10), False)  # 0.5 away, which are 10 steps
    assert at(HELPER, 0.4, 0.3, (1, 1)) == (pytest.approx(-np.hypot(0.25, 0.35) / 0.05), False)
    assert at(HELPER, 0.7, 0.46) == (pytest.approx(-4.8), True)
    assert at(HELPER, 0.7, 0.44) == (pytest.approx(-5.2), False)
    assert at("edge-west", 0.7, 0.0) == (pytest.approx(-28), False)
    assert at(SPARSE, 0.7, 0.46) == (10, True)
    assert at(SPARSE, 0.7, 0.44) == (-1, False)
    assert at(SPARSE, 0.7, 0.44, (0, 0.5)) == (10, True)  # rewarded for where the step leads


def test_moves_and_walls():
    env = PointReach(0)
    start, _ = env.reset(seed=0)
    obs, *_ = env.step(np.array([0.5, -3.0]))  # clipped to -1
    np.testing.assert_allclose(obs, start + [0.025, -0.05], atol=1e-6)
    for _ in range(50):
        obs, *_ = env.step(np.array([1.0, 0.0]))
    np.testing.assert_allclose(obs, [1.0, start[1] - 0.05], atol=1e-6)


@pytest.mark.parametrize("name", TASKS_OF_9)
def test_every_task_can_be_solved_and_the_sparse_one_by_its_helper_alone(name):
    assert successes(name, name) == 5
    if name != SPARSE:
        distance = np.linalg.norm(np.subtract(GOALS[name], GOALS[SPARSE]))
        assert distance == 0 if name == HELPER else distance > 2 * RADIUS
        assert successes(SPARSE, name) == 5 * (name == HELPER)


def test_render_shows_goals_and_who_acted():
    env = PointReach(8, "rgb_array", TASKS_OF_9)
    for policy, name in enumerate(TASKS_OF_9):
        env.reset(seed=0)
        env.acting_policy = policy
        for _ in range(12):
            env.step(np.array([0.0, -0.5]))
        picture = env.render()
        assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8

        def pixel(x, y, picture=picture):
            return tuple(picture[round((1 - y) * 128), round((1 + x) * 128)])

        assert pixel(env.position[0], -0.15) == COLORS[name]  # on the way
        assert pixel(*env.position) == (0, 0, 0)
        assert all(pixel(*GOALS[other]) == COLORS[other] for other in TASKS_OF_9[:-1])
    assert len(set(COLORS.values())) == 9


def test_it_takes_the_q_switch():
    """In the committed results QMP finds the sparse goal; its base and a uniform choice do not."""
    table = pd.read_csv(ROOT / "benchmark" / "results" / "PointReach-v0.csv")
    table = table.query("script == 'qmp_sac' and global_step == 40_000 and acting == 'own'")
    success = table[table["task"] == SPARSE].groupby("method")["success_rate"]
    methods = ["base", "qmp", "qmp-uniform"]
    assert success.size()[methods].tolist() == [10, 10, 10]
    base, qmp, uniform = success.sum()[methods]
    assert base <= 1 and qmp >= 9 and uniform <= 2
