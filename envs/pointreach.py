"""PointReach: four goals on a square, a block in the way, and one goal that is rewarded only when it is reached.

The illustration of QMP: a point starts bottom-left and must go up, over a block that stands on the floor, to the right.

    +--------------------+
    |               1    |     0, 1, 2: dense reward        3: sparse reward
    |          0    3  2 |
    |      #####         |     The ways to 0, 1 and 2 are, piece by piece, the way to 3; whoever runs straight to the
    |      #####         |     unknown right side instead of following them runs into the block.
    |  S   #####         |
    +--------------------+

Action, float32 in [-1, 1], shape (2,): the move along x and y, in units of 0.1. A move that would end in the block
slides along it; the walls of the square [-1, 1] x [-1, 1] stop the point.
Observation, float32, shape (2,): the position (x, y). The goal is not observed: each policy learns its own.
Reward: tasks 0-2: minus the distance to the goal in full steps (distance / 0.1). Task 3: -10 a step, 0 inside the goal.
Minimum reward -24.
Start: (-0.8, -0.8), each coordinate with uniform noise of +-0.05. Episodes never terminate; registration limits them to
50 steps, of which the way to goal 3 takes about 15.
Success: within 0.25 of the goal, at any step of the episode.

Why these choices: SAC starts out optimistic where it has not been (unvisited actions have seen no cost yet), which in
an open square can be enough to find the goal. The block hinders that: the unvisited side is straight behind it.
With QMP most early steps are other tasks' moves, and these can carry the point over the block. All three dense goals
lie beyond it, around goal 3, so that any mix of their policies drifts there. Costs are counted in steps, not distances,
so that they outweigh SAC's entropy bonus from the start. How often each method succeeds is in the README.
"""

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

TASKS = ("reach-bend", "reach-beyond", "reach-right", "reach-far-sparse")
STEP = 0.1
START, START_NOISE = np.array([-0.8, -0.8]), 0.05
BLOCK = np.array([[-0.4, -1.0], [0.1, 0.1]])  # lower left and upper right corner
GOALS = np.array([[0.0, 0.5], [0.5, 0.9], [0.9, 0.4], [0.5, 0.5]])
RADIUS = 0.25
SPARSE_COST = 10.0
COLORS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40))  # of tasks and of their policies


class PointReach(gym.Env):
    """Task `task` (0 to 3) of PointReach; see the module's docstring for spaces and rewards.

    `acting_policy` (int) may be set before each step to the number of the policy that acts; `render` draws the step in
    that policy's colour. It starts as the task's own.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, task: int, render_mode: str | None = None):
        if task not in range(len(TASKS)):
            raise ValueError(f"task of PointReach must be an integer from 0 to {len(TASKS) - 1}, got {task!r}")
        self.task = int(task)
        self.acting_policy = self.task
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.position = START + self.np_random.uniform(-START_NOISE, START_NOISE, 2)
        self.trajectory = [(self.acting_policy, *self.position)]
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray):
        x, y = self.position
        to_x, to_y = np.clip(self.position + STEP * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        moves = ((to_x, to_y), (to_x, y), (x, to_y), (x, y))  # freely, sliding along the block, not at all
        self.position = next(move for move in map(np.array, moves) if not self._in_block(move))
        self.trajectory.append((self.acting_policy, *self.position))

        distance = np.linalg.norm(self.position - GOALS[self.task])
        success = bool(distance < RADIUS)
        sparse = self.task == len(TASKS) - 1
        reward = -SPARSE_COST * (not success) if sparse else -distance / STEP
        return self.position.astype(np.float32), float(reward), False, False, {"success": success}

    @staticmethod
    def _in_block(position: np.ndarray) -> bool:
        return bool(np.all((BLOCK[0] < position) & (position < BLOCK[1])))

    def render(self) -> np.ndarray | None:
        """The episode so far as an RGB image, uint8 [256, 256, 3]: goals, block, and the way, in policy colours."""
        if self.render_mode is None:
            return None
        size = 512  # drawn at twice the size, for smooth lines

        def pixels(points: np.ndarray) -> list[tuple[float, float]]:
            return [((x + 1) / 2 * size, (1 - y) / 2 * size) for x, y in np.reshape(points, (-1, 2))]

        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        (left, bottom), (right, top) = pixels(BLOCK)
        draw.rectangle((left, top, right, bottom), fill=(150, 150, 150))
        for i, (x, y) in enumerate(pixels(GOALS)):
            radius = RADIUS / 2 * size
            box = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(box, outline=COLORS[i], width=10 if i == self.task else 2)
        for (_, *a), (policy, *b) in zip(self.trajectory, self.trajectory[1:], strict=False):
            draw.line(pixels((a, b)), fill=COLORS[policy], width=7)
        ((x, y),) = pixels(self.position)
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill="black")
        return np.asarray(image.resize((size // 2, size // 2), Image.Resampling.BOX))
