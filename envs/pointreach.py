"""PointReach: four corners of a square, each rewarded by distance, and one of them again, rewarded only once reached.

The illustration of QMP, small enough to train on a laptop: a point starts in the middle.

    +-----------------------+
    |  NW               NE  |    corner-north-east, -north-west, -south-west, -south-east: dense reward
    |                       |    corner-north-east-sparse: no reward but in the disc around NE
    |           S           |
    |                       |    For the sparse task one of the four other policies helps, and three mislead.
    |  SW               SE  |
    +-----------------------+

Action, float32 in [-1, 1], shape (2,): the move along x (east) and y (north), in units of STEP. The walls of the square
[-1, 1] x [-1, 1] stop the point.
Observation, float32, shape (2,): the position (x, y). The goal is not observed: each policy learns its own.
Reward: minus the distance to the goal in steps (distance / STEP); in the sparse task 10 in the disc, -1 elsewhere.
Success: within 0.25 of the goal, the sparse task's disc, at any step of the episode.
Minimum reward: -48.1 in the corners, -39.5 on the edges, -1 in the sparse task; for UDS -50 and -1.
Start: (0, 0), each coordinate with uniform noise of +-0.05. Episodes never terminate; registration limits them to 50
steps.

PointReach2-v0 has corner-north-east and the sparse task, PointReach9-v0 four more dense tasks, halfway between the
corners, in which seven of eight policies mislead.

Why this layout: the disc begins 11 steps from the start, straight to the corner. Random actions come there in none of
1,000 episodes; the policies of four corners, drawn at random in each step, cancel out, and come there in 15 even if
they are perfect (a run has 160 episodes of each task). Only a choice that depends on the task's own critics is steady.

Why these rewards: -1 is a cost of time, which lowers Q where the task has been, so that the switch prefers what leads
elsewhere. With 0 instead, the entropy bonus raises Q there; in one of four seeds QMP then never came to the disc. Dense
rewards are counted in steps, not in distances, so that they outweigh the entropy bonus while alpha is near 1.

With the defaults of qmp_sac.py the sparse task is solved after 40,000 steps by QMP in 9 of 10 seeds, without QMP in
none of 10, and with --switch-rule uniform in none of 10 (docs/results.md).
"""

import gymnasium as gym
import numpy as np
from PIL import Image, ImageDraw

from envs.tasks import check_task

SPARSE = "corner-north-east-sparse"
GOALS = {
    "corner-north-east": (0.7, 0.7),
    "corner-north-west": (-0.7, 0.7),
    "corner-south-west": (-0.7, -0.7),
    "corner-south-east": (0.7, -0.7),
    "edge-north": (0.0, 0.7),
    "edge-west": (-0.7, 0.0),
    "edge-south": (0.0, -0.7),
    "edge-east": (0.7, 0.0),
    SPARSE: (0.7, 0.7),
}
TASKS_OF_9 = tuple(GOALS)
TASKS = (*TASKS_OF_9[:4], SPARSE)
TASKS_OF_2 = (TASKS_OF_9[0], SPARSE)
STEP, START_NOISE, RADIUS = 0.05, 0.05, 0.25
REWARD_INSIDE, REWARD_OUTSIDE = 10.0, -1.0  # of the sparse task
COLORS = dict(  # of tasks and their policies
    zip(
        GOALS,
        (
            (31, 119, 180),
            (255, 127, 14),
            (44, 160, 44),
            (214, 39, 40),
            (140, 86, 75),
            (227, 119, 194),
            (127, 127, 127),
            (188, 189, 34),
            (148, 103, 189),
        ),
        strict=True,
    )
)


class PointReach(gym.Env):
    """Task number `task` of `tasks`, which are names in GOALS; see the module's docstring for spaces and rewards.

    `acting_policy` (int) may be set before each step to the number of the policy that acts, which is that of its task;
    `render` draws the step in its colour. It starts as the task's own.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10, "attributes": ("acting_policy",)}

    def __init__(self, task: int, render_mode: str | None = None, tasks: tuple[str, ...] = TASKS):
        self.task, self.tasks = check_task("PointReach", task, len(tasks)), tasks
        self.acting_policy = self.task
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-START_NOISE, START_NOISE, 2)
        self.trajectory = [(self.acting_policy, *self.position)]
        return self.position.astype(np.float32), {}

    def step(self, action: np.ndarray):
        self.position = np.clip(self.position + STEP * np.clip(action, -1.0, 1.0), -1.0, 1.0)
        self.trajectory.append((self.acting_policy, *self.position))

        name = self.tasks[self.task]
        distance = np.linalg.norm(self.position - GOALS[name])
        success = bool(distance < RADIUS)
        sparse_reward = REWARD_INSIDE if success else REWARD_OUTSIDE
        reward = sparse_reward if name == SPARSE else -distance / STEP
        return self.position.astype(np.float32), float(reward), False, False, {"success": success}

    def render(self) -> np.ndarray | None:
        """The episode so far as an RGB image, uint8 [256, 256, 3].

        A dot for each goal with dense reward, a pale disc for the sparse one, a ring around the task's own, and the
        way of the point, each step in the colour of the policy that acted.
        """
        if self.render_mode is None:
            return None
        size = 512  # drawn at twice the size, for smooth lines
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)

        def pixels(x: float, y: float) -> tuple[float, float]:
            return (x + 1) / 2 * size, (1 - y) / 2 * size

        def circle(center: tuple[float, float], radius: float, **style) -> None:
            draw.circle(pixels(*center), radius / 2 * size, **style)

        if SPARSE in self.tasks:
            circle(GOALS[SPARSE], RADIUS, fill=tuple(255 - (255 - c) // 4 for c in COLORS[SPARSE]))
        own = self.tasks[self.task]
        circle(GOALS[own], RADIUS, outline=COLORS[own], width=6)
        for name in self.tasks:
            if name != SPARSE:
                circle(GOALS[name], 0.06, fill=COLORS[name])
        for (_, *a), (policy, *b) in zip(self.trajectory, self.trajectory[1:], strict=False):
            draw.line((pixels(*a), pixels(*b)), fill=COLORS[self.tasks[policy]], width=7)
        circle(self.position, 0.035, fill="black")
        return np.asarray(image.resize((size // 2, size // 2), Image.Resampling.BOX))
