"""Maze: a force-driven point runs from one cell to another in a maze of 9 x 12 cells, one pair of cells per task.

The point and its simulation are `point.xml`, the walls `LARGE_MAZE` of gymnasium-robotics, read from that package; the
same maze as D4RL's "maze2d-large". Cells have side 1, the middle of the maze is the origin; counted from 0 at the top
left, the cell (row, column) has its centre at x = column - 5.5, y = 4 - row.

    columns 0 1 2 3 4 5 6 7 8 9 10 11
    row 0   # # # # # # # # # # #  #
    row 1   # . . . . # . . . . .  #      y
    row 2   # . # # . # . # . # .  #      |
    row 3   # . . . . . . # . . .  #      +-- x
    row 4   # . # # # # . # # # .  #
    row 5   # . . # . # . . . . .  #
    row 6   # # . # . # . # . # #  #
    row 7   # . . # . . . # . . .  #
    row 8   # # # # # # # # # # #  #

Action, float32 in [-1, 1], shape (2,): force along x and y, in units of 100; the point has mass 4.19, radius 0.1 and a
damping of 1. A step is 0.01 s.

Observation, float32, shape (4,); the goal is not observed, each policy learns its own:

| index | meaning | unit |
|---|---|---|
| 0, 1 | position x, y | cells |
| 2, 3 | velocity x, y, clipped to [-5, 5] before the step, so that it may exceed this by what one step adds | cells/s |

Starts and goals lie off the centres of their cells, by 0.2 along x and -0.2 along y (`place`).
Reward: exp(-d) - 1 with d the distance to the goal, between -1 and 0. Minimum reward, for UDS: -1.
Success: d <= 0.5, which also terminates the episode. Registration limits episodes to 600 steps; the shortest ways take
9 to 15 moves from cell to cell, which PD control along their centres makes in 240 to 440 steps.
Start: there, with uniform noise of +-0.1 in x and y; velocity 0.1 times a standard normal.

Source: the QMP paper's Maze Navigation; cells, places in them, noise, reward and threshold are those of clvrai/qmp
("MazeLarge-10-v0"), which builds on D4RL. There only the axes differ: x grows with the row, y with the column, and the
origin lies in the cell (0, 0).
"""

import math
import runpy

import gymnasium as gym
import mujoco
import numpy as np

from envs.tasks import check_task
from envs.viewer import ROBOTICS, ViewedEnv

WALLS = np.array(runpy.run_path(str(ROBOTICS / "maze" / "maps.py"))["LARGE_MAZE"], dtype=bool)  # [9, 12]
CELLS = (  # start (row, column), goal (row, column) of each task
    ((1, 3), (5, 8)),
    ((1, 10), (2, 4)),
    ((4, 1), (1, 7)),
    ((7, 4), (4, 10)),
    ((1, 3), (7, 4)),
    ((1, 7), (7, 10)),
    ((5, 4), (7, 9)),
    ((7, 1), (2, 6)),
    ((1, 2), (3, 10)),
    ((7, 2), (6, 8)),
)
TASKS = tuple(f"{r}-{c}-to-{goal_r}-{goal_c}" for (r, c), (goal_r, goal_c) in CELLS)
START_NOISE, START_VELOCITY = 0.1, 0.1
MAX_VELOCITY = 5.0
GOAL_RADIUS = 0.5


def center(row: int, column: int) -> tuple[float, float]:
    """Position (x, y) of the centre of a cell."""
    rows, columns = WALLS.shape
    return column + 0.5 - columns / 2, rows / 2 - row - 0.5


def place(row: int, column: int) -> tuple[float, float]:
    """Position (x, y) of the start or goal in a cell."""
    x, y = center(row, column)
    return x + 0.2, y - 0.2


def load_model(goal: tuple[float, float]) -> mujoco.MjModel:
    """The point, a block for every wall cell, and a coloured disc around `goal` (x, y) that touches nothing."""
    spec = mujoco.MjSpec.from_file(str(ROBOTICS / "assets" / "point" / "point.xml"))
    for row, column in np.argwhere(WALLS):
        spec.worldbody.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[*center(row, column), 0.2],
            size=[0.5, 0.5, 0.2],
            rgba=[0.7, 0.5, 0.3, 1.0],
            contype=1,
        )
    spec.worldbody.add_site(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[*goal, -0.09],
        size=[GOAL_RADIUS, 0.01, 0.0],
        rgba=[0.9, 0.2, 0.2, 1.0],
    )
    spec.visual.quality.offsamples = 0  # without a GPU, smoothing edges takes two thirds of the time of a frame
    return spec.compile()


class Maze(ViewedEnv):
    """Task `task` (0 to 9) of Maze; see the module's docstring for spaces and rewards."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}

    def __init__(self, task: int, render_mode: str | None = None):
        self.task = check_task("Maze", task, len(TASKS))
        self.start, self.goal = (place(*cell) for cell in CELLS[self.task])
        super().__init__(load_model(self.goal), render_mode)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.qpos[:] = self.start + self.np_random.uniform(-START_NOISE, START_NOISE, 2)
        self.qvel[:] = START_VELOCITY * self.np_random.standard_normal(2)
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.ctrl[:] = action  # MuJoCo clips it to [-1, 1]
        np.clip(self.qvel, -MAX_VELOCITY, MAX_VELOCITY, out=self.qvel)
        mujoco.mj_step(self.model, self.data)
        distance = math.dist(self.qpos.tolist(), self.goal)
        success = distance <= GOAL_RADIUS
        return self._observation(), math.exp(-distance) - 1.0, success, False, {"success": success}

    def _observation(self) -> np.ndarray:
        return np.concatenate((self.qpos, self.qvel), dtype=np.float32)

    def render(self) -> np.ndarray | None:
        """The maze from above, uint8 [240, 320, 3]: the goal red; the point green, drawn twice as large as it is."""
        if self.render_mode is None:
            return None
        mujoco.mj_kinematics(self.model, self.data)  # a step leaves the bodies where they were before it
        viewer = self.prepare_viewer(320, 240, lookat=(0.0, 0.0, 0.0), distance=11.5, azimuth=90.0, elevation=-90.0)
        return viewer.render("rgb_array")
