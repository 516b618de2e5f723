"""envs/maze.py: the maze, gymnasium-robotics' dynamics, and a follower that solves every task."""

import math
import re
from collections import deque

import numpy as np
import pytest
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

from envs import maze
from envs.maze import CELLS, TASKS, WALLS, Maze, center, make_tasks, place


def shortest_way(start, goal):
    """Cells from start to goal, both included, by breadth-first search."""
    seen, ways = {start}, deque([[start]])
    while ways[0][-1] != goal:
        way = ways.popleft()
        row, column = way[-1]
        for cell in ((row, column + 1), (row + 1, column), (row, column - 1), (row - 1, column)):
            if not WALLS[cell] and cell not in seen:
                seen.add(cell)
                ways.append([*way, cell])
    return ways[0]


def test_maze_is_d4rls_large_with_ways_of_nine_to_fifteen_moves():
    """As it is drawn in the docstring of envs/maze.py."""
    drawn = [row.split()[:12] for row in re.findall(r"row \d (.*)", maze.__doc__)]
    assert drawn == np.where(WALLS, "#", ".").tolist()
    moves = [len(shortest_way(*cells)) - 1 for cells in CELLS]
    assert len(moves) == len(set(TASKS)) == 10 and min(moves) == 9 and max(moves) == 15
    assert all(not WALLS[cell] for cells in CELLS for cell in cells)


@pytest.mark.parametrize("task", range(10))
def test_follower_solves_every_task(task):
    """PD control along cell centres, within the time limit; only the goal ends the episode."""
    env = make_tasks()[TASKS[task]]()
    obs, _ = env.reset(seed=task)
    way = shortest_way(*CELLS[task])
    assert (math.floor(4.5 - obs[1]), math.floor(obs[0] + 6)) == way[0]  # the cell of the start
    way = deque([*(center(*cell) for cell in way[:-1]), place(*way[-1])])
    terminated = truncated = False
    while not (terminated or truncated):
        if len(way) > 1 and math.dist(way[0], obs[:2]) < 0.3:
            way.popleft()
        action = np.clip(2.0 * (np.array(way[0]) - obs[:2]) - 0.4 * obs[2:], -1, 1)
        obs, _, terminated, truncated, info = env.step(action.astype(np.float32))
        assert info["success"] is terminated
    assert terminated and not truncated
    assert math.dist(obs[:2], place(*CELLS[task][1])) <= 0.5 + 1e-6


@pytest.mark.parametrize("task", [0, 7])
def test_reward_and_success(task):
    env = Maze(task)
    env.reset(seed=0)
    (row, column), rng = CELLS[task][1], np.random.default_rng(0)
    goal = np.array([column - 5.3, 3.8 - row])
    seen = set()
    for _ in range(200):
        env.data.qpos[:], env.data.qvel[:] = goal + rng.uniform(-0.4, 0.4, 2), 0.0
        obs, reward, terminated, truncated, info = env.step(rng.uniform(-1, 1, 2))
        distance = np.sqrt(((env.data.qpos - goal) ** 2).sum())
        assert obs.tolist() == np.float32([*env.data.qpos, *env.data.qvel]).tolist()
        assert type(reward) is float and reward == pytest.approx(np.exp(-distance) - 1, abs=1e-12)
        assert terminated is info["success"] is bool(distance <= 0.5) and truncated is False
        seen.add(terminated)
    assert seen == {True, False}


def test_dynamics_are_gymnasium_robotics():
    """Bit for bit, with walls in the way; velocities and actions beyond the limits are clipped."""
    theirs, ours = PointMazeEnv(maze_map=LARGE_MAZE), Maze(2)
    theirs.reset(seed=0)
    start = ours.reset(seed=0)[0]
    theirs.point_env.set_state(ours.data.qpos.copy(), ours.data.qvel.copy())
    touched = False
    # Each push lasts for twenty steps, so that the point runs into walls.
    pushes = np.random.default_rng(7).uniform(-1.3, 1.3, (30, 2)).repeat(20, axis=0)
    for action in pushes.astype(np.float32):
        expected = theirs.step(action)[0]["observation"]
        obs = ours.step(action)[0]
        touched |= ours.data.ncon > 1  # one contact is with the ground
        assert obs.tolist() == expected.astype(np.float32).tolist()
    assert touched and math.dist(obs[:2], start[:2]) > 1
