"""envs/maze.py: the maze, gymnasium-robotics' dynamics, and a follower that solves every task."""

import math
from collections import deque

import numpy as np
import pytest
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

from envs.maze import CELLS, TASKS, WALLS, Maze, center, make_tasks, place

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


def shortest_way(start, goal):
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


def test_maze_is_d4rls_large_with_ways_of_nine_to_fifteen_moves():
    assert [[c == "#" for c in row] for row in D4RL_LARGE.split()] == WALLS.tolist()
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
    """Bit for bit from the same state under the same actions, with and without walls in the way."""
    theirs, ours = PointMazeEnv(maze_map=LARGE_MAZE), Maze(2)
    theirs.reset(seed=0)
    start = ours.reset(seed=0)[0]
    theirs.point_env.set_state(ours.data.qpos.copy(), ours.data.qvel.copy())
    touched = False
    # Each push lasts for twenty steps, so that the point runs into walls.
    pushes = np.random.default_rng(7).uniform(-1, 1, (30, 2)).repeat(20, axis=0)
    for action in pushes.astype(np.float32):
        expected = theirs.step(action)[0]["observation"]
        obs = ours.step(action)[0]
        touched |= ours.data.ncon > 1  # one contact is with the ground
        assert obs.tolist() == expected.astype(np.float32).tolist()
    assert touched and math.dist(obs[:2], start[:2]) > 1


def test_velocity_and_action_are_clipped():
    env, twin = Maze(0), Maze(0)
    env.reset(seed=0), twin.reset(seed=0)
    env.data.qvel[:], twin.data.qvel[:] = (50.0, 0.0), (5.0, 0.0)
    clipped = twin.step(np.float32([1, -1]))[0].tolist()
    assert env.step(np.float32([9, -9]))[0].tolist() == clipped
    assert 5 < env.data.qvel[0] < 5.25
