"""Tests of envs/maze.py: the maze itself, gymnasium-robotics' dynamics, and a follower that solves every task."""

import math
import os
import subprocess
import sys
import warnings
from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.maze import CELLS, TASKS, WALLS, Maze, center

D4RL_LARGE = """
############
#....#.....#
#.##.#.#.#.#
#......#...#
#.####.###.#
#..#.#.....#
##.#.#.#.###
#..#...#...#
############
"""


def shortest_way(start: tuple[int, int], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells from start to goal, both included, by breadth-first search."""
    before, queue = {start: None}, deque([start])
    while queue:
        cell = queue.popleft()
        for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            following = (cell[0] + dr, cell[1] + dc)
            if not WALLS[following] and following not in before:
                before[following] = cell
                queue.append(following)
    way = [goal]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1]


def cell_of(position: np.ndarray) -> tuple[int, int]:
    return math.floor(4.5 - position[1]), math.floor(position[0] + 6)


def pushes(steps: int, seed: int = 7) -> np.ndarray:
    """Actions that each last for twenty steps, so that the point runs into walls."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps // 20, 2)).repeat(20, axis=0).astype(np.float32)


def roll_out(env: Maze, seed: int, steps: int = 100, render: bool = False) -> list:
    """Everything that reset and the steps return."""
    rows = [env.reset(seed=seed)[0].tolist()]
    for action in pushes(steps):
        if render:
            env.render()
        obs, *rest = env.step(action)
        rows.append((obs.tolist(), *rest))
    return rows


def test_maze_is_d4rls_large():
    assert [[c == "#" for c in row] for row in D4RL_LARGE.split()] == WALLS.tolist()


def test_ways_have_nine_to_fifteen_moves():
    moves = [len(shortest_way(*cells)) - 1 for cells in CELLS]
    assert len(moves) == len(set(TASKS)) == 10 and min(moves) == 9 and max(moves) == 15
    assert all(not WALLS[cell] for cells in CELLS for cell in cells)


@pytest.mark.parametrize("task", range(10))
def test_follower_solves_every_task(task):
    """PD control from cell centre to cell centre, within the time limit; only reaching the goal ends the episode."""
    env = gym.make("qmp/Maze-v0", task=task)
    obs, _ = env.reset(seed=task)
    way = deque(shortest_way(*CELLS[task]))
    assert cell_of(obs) == way[0]
    terminated = truncated = False
    while not (terminated or truncated):
        if len(way) > 1 and math.dist(center(*way[0]), obs[:2]) < 0.3:
            way.popleft()
        action = np.clip(2.0 * (np.array(center(*way[0])) - obs[:2]) - 0.4 * obs[2:], -1, 1).astype(np.float32)
        obs, _, terminated, truncated, info = env.step(action)
        assert info["success"] is terminated
    assert terminated and not truncated
    assert math.dist(obs[:2], center(*CELLS[task][1])) <= 0.5 + 1e-6


def test_reset_distribution():
    env = Maze(5)
    starts = np.stack([env.reset(seed=seed)[0] for seed in range(500)])
    noise = starts[:, :2] - center(1, 7)
    assert np.abs(noise).max() <= 0.1 + 1e-6 and np.all(noise.max(0) > 0.09) and np.all(noise.min(0) < -0.09)
    assert noise.std(0) == pytest.approx(0.1 / 3**0.5, rel=0.15)
    assert starts[:, 2:].std(0) == pytest.approx(0.1, rel=0.15) and np.abs(starts[:, 2:].mean(0)).max() < 0.02
    assert np.abs(np.corrcoef(starts.T) - np.eye(4)).max() < 0.15


@pytest.mark.parametrize("task", [0, 7])
def test_reward_and_success(task):
    env = Maze(task)
    env.reset(seed=0)
    (row, column), rng = CELLS[task][1], np.random.default_rng(0)
    goal = np.array([column - 5.5, 4.0 - row])
    seen = set()
    for _ in range(200):
        env.qpos[:], env.qvel[:] = goal + rng.uniform(-0.45, 0.45, 2), 0.0  # inside the goal's cell
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 2).astype(np.float32))
        distance = np.sqrt(((env.qpos - goal) ** 2).sum())
        assert obs.tolist() == np.float32([*env.qpos, *env.qvel]).tolist()
        assert type(reward) is float and reward == pytest.approx(np.exp(-distance) - 1, abs=1e-12)
        assert terminated is info["success"] is bool(distance <= 0.5) and truncated is False
        seen.add(terminated)
    assert seen == {True, False}


def test_dynamics_are_gymnasium_robotics():
    """Bit for bit from the same state under the same actions, with and without walls in the way."""
    from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
    from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

    theirs, ours = PointMazeEnv(maze_map=LARGE_MAZE), Maze(2)
    theirs.reset(seed=0)
    start = ours.reset(seed=0)[0]
    theirs.point_env.set_state(ours.qpos.copy(), ours.qvel.copy())
    touched = False
    for action in pushes(600):
        expected = theirs.step(action)[0]["observation"]
        obs = ours.step(action)[0]
        touched |= ours.data.ncon > 1  # one contact is with the ground
        assert obs.tolist() == expected.astype(np.float32).tolist()
    assert touched and math.dist(obs[:2], start[:2]) > 1


def test_velocity_and_action_are_clipped():
    env, twin = Maze(0), Maze(0)
    env.reset(seed=0), twin.reset(seed=0)
    env.qvel[:], twin.qvel[:] = (50.0, 0.0), (5.0, 0.0)
    assert env.step(np.float32([9, -9]))[0].tolist() == twin.step(np.float32([1, -1]))[0].tolist()
    assert 5 < env.qvel[0] < 5.25


def test_walls_hold():
    env = Maze(3)
    env.reset(seed=1)
    cells = set()
    for action in pushes(3000, seed=1):
        obs, *_ = env.step(action)
        cells.add(cell_of(obs))
    assert len(cells) > 5 and not any(WALLS[cell] for cell in cells)


def test_a_seed_decides_all_that_follows():
    env = Maze(4, render_mode="rgb_array")
    first = roll_out(env, 3)
    roll_out(env, 4)
    assert first == roll_out(env, 3) == roll_out(Maze(4), 3) != roll_out(env, 4)
    env.reset(seed=3)
    second = env.reset()[0].tolist()
    env.reset(seed=3)
    assert second == env.reset()[0].tolist() != first[0]


def test_the_same_in_another_process():
    code = "from test_maze import *; print(roll_out(Maze(1), 5)[-1])"
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=os.path.dirname(os.path.abspath(__file__)),
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(os.path.abspath(__file__)))},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.splitlines()[-1] == str(roll_out(Maze(1), 5)[-1])


def test_tasks_differ():
    vec = envs.make_vec("Maze-v0", seed=1)
    obs, _ = vec.reset()
    assert [cell_of(row) for row in obs] == [start for start, _ in CELLS]
    assert len({tuple(row[2:]) for row in obs}) == 10  # each task has a generator of its own
    assert obs.dtype == np.float32 and vec.single_observation_space.shape == (4,)
    rewards = vec.step(np.zeros((10, 2), np.float32))[1]
    goals = np.array([center(*goal) for _, goal in CELLS])
    assert rewards == pytest.approx(np.exp(-np.linalg.norm(obs[:, :2] - goals, axis=1)) - 1, abs=0.01)
    vec.close()


def test_time_limit():
    env = gym.make("qmp/Maze-v0", task=0)
    env.reset(seed=0)
    ends = [env.step(np.zeros(2, np.float32))[2:4] for _ in range(600)]
    assert ends == [(False, False)] * 599 + [(False, True)]


@pytest.mark.parametrize("task", range(10))
def test_check_env(task):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations
        check_env(Maze(task), skip_render_check=True)


def test_spaces():
    env = Maze(0)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


@pytest.mark.parametrize("task", [-1, 10, 0.5, "1-3-to-5-8"])
def test_bad_task(task):
    with pytest.raises(ValueError, match="from 0 to 9, got") as error:
        Maze(task)
    assert "\n" not in str(error.value)


def colored(frame: np.ndarray, channel: int) -> tuple[float, float]:
    """Maze coordinates of the middle of the pixels in which one colour clearly leads."""
    others = np.delete(frame, channel, axis=2).max(2)
    rows, columns = np.nonzero(frame[..., channel] > 1.4 * others + 20)
    return (columns.mean() - 160) / 26.3, (120 - rows.mean()) / 26.3  # on the floor, a cell is 26 pixels


def test_render(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", envs.choose_opengl())
    tasks = [Maze(task, render_mode="rgb_array") for task in (0, 1)]
    for env in tasks:
        env.reset(seed=0)
    frames = [env.render() for env in tasks]
    for env, frame in zip(tasks, frames, strict=True):
        assert frame.shape == (240, 320, 3) and frame.dtype == np.uint8
        assert np.array_equal(frame, env.render())  # side by side
        assert colored(frame, 0) == pytest.approx(env.goal, abs=0.4)
        assert colored(frame, 1) == pytest.approx(env.qpos, abs=0.3)
    for action in pushes(60):
        tasks[0].step(action)
    moved = tasks[0].render()
    assert colored(moved, 1) == pytest.approx(tasks[0].qpos, abs=0.3)
    assert colored(moved, 1) != pytest.approx(colored(frames[0], 1), abs=0.3)
    tasks[0].close()
    assert np.array_equal(frames[1], tasks[1].render())
    assert roll_out(tasks[1], 2, steps=20, render=True) == roll_out(Maze(1), 2, steps=20)  # drawing changes nothing
    tasks[1].close()
    assert Maze(0).render() is None
