"""envs/pointreach.py: rewards and success by number, a layout that asks for a Q-switch."""

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT

import envs
from envs import pointreach
from envs.pointreach import COLORS, GOALS, RADIUS, SPARSE, STEP, TASKS, TASKS_OF_9, PointReach

SETS = {
    "PointReach-v0": TASKS,
    "PointReach2-v0": pointreach.TASKS_OF_2,
    "PointReach9-v0": TASKS_OF_9,
}
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


def towards(name, position):
    """The action straight to the goal of that name: what a trained policy does, without noise."""
    return np.clip((GOALS[name] - position) / STEP, -1, 1)


def successes(env, policy, episodes):
    """In how many episodes of 50 steps the goal is reached."""
    count = 0
    for episode in range(episodes):
        env.reset(seed=episode)
        count += any([env.step(policy(env.position))[-1]["success"] for _ in range(50)])
    return count


def test_task_names():
    assert all(tuple(envs.make_tasks(env_id)) == tasks for env_id, tasks in SETS.items())
    assert list(map(len, SETS.values())) == [5, 2, 9]
    assert {tasks[0] for tasks in SETS.values()} == {HELPER}
    assert {tasks[-1] for tasks in SETS.values()} == {SPARSE}
    for name, (x, y) in GOALS.items():
        places = {"north": y > 0, "south": y < 0, "east": x > 0, "west": x < 0}
        assert all((word in name) == is_there for word, is_there in places.items())


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
    starts = np.array([env.reset(seed=seed)[0] for seed in range(100)])
    assert 0.045 < np.abs(starts).max() <= 0.05 and len(np.unique(starts)) == 200
    start = env.position
    obs, *_ = env.step(np.array([0.5, -3.0]))  # clipped to -1
    np.testing.assert_allclose(obs, start + [0.025, -0.05], atol=1e-6)
    for _ in range(50):
        obs, *_ = env.step(np.array([1.0, 0.0]))
    np.testing.assert_allclose(obs, [1.0, start[1] - 0.05], atol=1e-6)


@pytest.mark.parametrize("name", TASKS_OF_9)
def test_every_task_can_be_solved_and_the_sparse_one_by_its_helper_alone(name):
    assert successes(task_named(name), lambda position: towards(name, position), 5) == 5
    if name != SPARSE:
        distance = np.linalg.norm(np.subtract(GOALS[name], GOALS[SPARSE]))
        assert distance == 0 if name == HELPER else distance > 2 * RADIUS
        found = successes(task_named(SPARSE), lambda position: towards(name, position), 5)
        assert found == 5 * (name == HELPER)


@pytest.mark.parametrize("env_id", SETS)
def test_render_shows_goals_and_who_acted(env_id):
    tasks = SETS[env_id]
    env = PointReach(len(tasks) - 1, "rgb_array", tasks)
    for policy, name in enumerate(tasks):
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
        assert all(pixel(*GOALS[other]) == COLORS[other] for other in tasks if other != SPARSE)
    assert len(set(COLORS.values())) == 9


def test_it_takes_the_q_switch():
    """In the committed results QMP finds the sparse goal, its base and a uniform choice do not."""
    table = pd.read_csv(ROOT / "benchmark" / "results" / "PointReach-v0.csv")
    last = (table["script"] == "qmp_sac") & (table["global_step"] == 40_000)
    last &= (table["acting"] == "own") & (table["task"] == SPARSE)
    found = table[last].groupby("method")["success_rate"].agg(["size", "sum"])
    assert (found["size"].loc[["base", "qmp", "qmp-uniform"]] == 10).all()
    assert found["sum"]["qmp"] >= 9
    assert found["sum"]["base"] <= 1 and found["sum"]["qmp-uniform"] <= 2
