"""PointReach: four goals on a square, three rewarded by distance, the fourth only once it is reached.

The illustration of QMP: a point starts bottom-left; all goals lie towards the top right.

    +--------------------+
    |                    |
    |            0   2   |     0, 1, 2: dense reward        3: sparse reward, a disc in the midst of the others
    |              3     |
    |                1   |     The ways to 0, 1 and 2 are, for most of their length, the way to 3.
    |                    |
    |  S                 |
    +--------------------+

Action, float32 in [-1, 1], shape (2,): the move along x and y, in units of 0.1. The walls of the square
[-1, 1] x [-1, 1] stop the point.
Observation, float32, shape (2,): the position (x, y). The goal is not observed: each policy learns its own.
Reward: tasks 0-2: minus the distance to the goal in steps (distance / 0.1). Task 3: 10 inside the goal, 0 elsewhere.
Minimum reward: -25 in tasks 0-2, 0 in task 3.

PointReach2-v0 and PointReach8-v0 are the same with one and with seven dense tasks (see GOALS) and the sparse one, which
always comes last.

Start: (-0.8, -0.8), each coordinate with uniform noise of +-0.05. Episodes never terminate; registration limits them to
50 steps, of which the way to goal 3 takes about 10.
Success: within the goal's radius (0.25; goal 3: 0.4) at any step of the episode.

Why these choices: a policy without information walks at random and strays about half a unit from its start in an
episode, while goal 3 begins 1.4 away, so that its task alone never sees a reward. (A cost per step instead of nothing
would tell SAC to go where it has not been yet, and in an open square that finds the goal.) The policies of the other
tasks, borrowed for some steps in a row, carry the point there, because any mix of them drifts to the goals' middle,
which is goal 3. Rewards are counted in steps, not distances, so that they outweigh SAC's entropy bonus from the start.
How often each method succeeds on PointReach-v0 is in the README.
"""

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

from envs.tasks import task_number

SPARSE, SPARSE_REWARD = "reach-middle-sparse", 10.0
GOALS = {
    "reach-up": (0.15, 0.6),
    "reach-right": (0.6, 0.15),
    "reach-far": (0.7, 0.7),
    "reach-near": (0.2, 0.2),
    "reach-top": (0.35, 0.8),
    "reach-side": (0.8, 0.35),
    "reach-left": (0.0, 0.4),
    SPARSE: (0.47, 0.47),
}
TASKS = ("reach-up", "reach-right", "reach-far", SPARSE)
TASKS_OF_2, TASKS_OF_8 = ("reach-up", SPARSE), tuple(GOALS)
STEP = 0.1
START, START_NOISE = np.array([-0.8, -0.8]), 0.05
COLORS = (  # of policies, by their number
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (127, 127, 127),
)


def radius(name: str) -> float:
    """How near to its goal the task of that name must come."""
    return 0.4 if name == SPARSE else 0.25


class PointReach(gym.Env):
    """Task number `task` of `tasks`, names of goals; see the module's docstring for spaces and rewards.

    `acting_policy` (int) may be set before each step to the number of the policy that acts; `render` draws the step in
    that policy's colour. It starts as the task's own.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, task: int, render_mode: str | None = None, tasks: tuple[str, ...] = TASKS):
        self.task, self.tasks = task_number("PointReach", task, len(tasks)), tasks
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
        self.position = np.clip(self.position + STEP * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        self.trajectory.append((self.acting_policy, *self.position))

        name = self.tasks[self.task]
        distance = np.linalg.norm(self.position - GOALS[name])
        success = bool(distance < radius(name))
        reward = SPARSE_REWARD * success if name == SPARSE else -distance / STEP
        return self.position.astype(np.float32), float(reward), False, False, {"success": success}

    def render(self) -> np.ndarray | None:
        """The episode so far as an RGB image, uint8 [256, 256, 3]: goals and the way, in policy colours."""
        if self.render_mode is None:
            return None
        size = 512  # drawn at twice the size, for smooth lines

        def pixels(points: np.ndarray) -> list[tuple[float, float]]:
            return [((x + 1) / 2 * size, (1 - y) / 2 * size) for x, y in np.reshape(points, (-1, 2))]

        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        for i, name in enumerate(self.tasks):
            ((x, y),), r = pixels(GOALS[name]), radius(name) / 2 * size
            box = (x - r, y - r, x + r, y + r)
            draw.ellipse(box, outline=COLORS[i], width=10 if i == self.task else 2)
        for (_, *a), (policy, *b) in zip(self.trajectory, self.trajectory[1:], strict=False):
            draw.line(pixels((a, b)), fill=COLORS[policy], width=7)
        ((x, y),) = pixels(self.position)
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill="black")
        return np.asarray(image.resize((size // 2, size // 2), Image.Resampling.BOX))
