"""Kitchen MT10: a robot arm opens and closes, switches on and off one element of a kitchen in each of ten tasks.

A Franka arm with a two-finger gripper stands before an oven with cabinets above it. Robot, kitchen, start and control
are those of `FrankaKitchen-v1` in gymnasium-robotics [1], [2], which adapts D4RL's kitchen.

| tasks | element | joints in qpos | site | open or on | success within |
|---|---|---|---|---|---|
| 0, 1 | sliding door: open, close | 19 (m) | `slide_site` | 0.37 | 0.1 |
| 2, 3 | right hinged door: open, close | 20, 21, left and right (rad) | `hinge_site2` | 0, 1.45 | open 0.1, close 0.3 |
| 4, 5 | bottom left burner: on, off | 11 knob (rad), 12 burner (m) | `knob2_site` | -0.88, -0.01 | 0.3 |
| 6, 7 | top left burner: on, off | 15 knob (rad), 16 burner (m) | `knob4_site` | -0.92, -0.01 | 0.3 |
| 8, 9 | light: on, off | 17 switch (rad), 18 lamp (m) | `light_site` | -0.69, -0.05 | 0.3 |

Closed or off is where `FrankaKitchen-v1` starts, within 0.007 of 0. Each task starts in the state that is the goal of
the other task of its row; everything else starts as in `FrankaKitchen-v1`.

Action, float32 in [-1, 1], shape (9,); a step lasts 0.08 s, 40 steps of the simulation:

| index | meaning |
|---|---|
| 0-6 | velocity of the arm's joints, in units of 2 rad/s |
| 7, 8 | velocity of the two fingers, in units of 2 m/s; from 0.25 on it means fully open, from -0.25 closed |

A position servo of each joint gets the last observed position plus velocity times 0.08 s, within the joint's limits.
Because that position is the noisy one of the observation, the noise moves the robot, too.

Observation, float32, shape (60,):

| index | meaning | noise, uniform |
|---|---|---|
| 0-6 | joints of the arm (rad) | +-0.01 |
| 7, 8 | the two fingers, from 0 (closed) to 0.04 (m) | +-0.01 |
| 9, 10 | knob (rad) and burner (m), bottom right | +-0.0005 |
| 11-16 | the same of bottom left, top right, top left | +-0.00005 |
| 17, 18 | light switch (rad), lamp (m) | +-0.0005 |
| 19 | sliding door (m) | +-0.0005 |
| 20-22 | left and right hinged door, microwave's door (rad) | +-0.01 |
| 23-25, 26-29 | kettle: position (m), quaternion w x y z | +-0.0005, but w, x, y +-0.01 |
| 30-59 | goal: for each of entries 0-29 its value at the goal if it belongs to the element, else 0 | none |

Reward: with d the distance of the element's joints, as observed, from the goal and r that of the midpoint of the
fingers' bodies from the element's site (m, without noise),

    20 (0.4 T(d; success distance) + 0.6 T(r; 0.08) - 1),    T(x; b) = 0.1 ** ((max(x - b, 0) / |x0 - b|) ** 2)

so that T is 1 up to b, and 0.1 at x0: for d the distance of the element's start from the goal, for r the distance of
the hand's site `end_effector`, 4.5 cm in front of the midpoint, from the element's site at the start. The step that
succeeds gets 2800 instead, 140 times the size of the minimum reward, -20.
Termination and success: d below the success distance. Registration limits episodes to 140 steps.

The ten tasks are those of QMP's paper and of `KitchenMTEasy-v0` in its code [3]. Differences from there: the observed
goal had fixed entries for kettle, microwave, light and bottom burner in all tasks, so that those of the last two were
not their own when switching off; MuJoCo was version 2.1.
Differences from `FrankaKitchen-v1`: one element per episode, this reward, no velocities in the observation; noise is 10
times as large for the robot, 10 to 4000 times for the rest. Geoms that are only there to be seen are left out of the
simulation, which changes none of its numbers: a step takes 0.8 times as long, the model a hundredth of the memory. All
environments of a process share one model: copy it before changing it.

[1] Gupta et al., Relay Policy Learning, CoRL 2019, arXiv 1910.11956. [2] Fu et al., D4RL, 2020, arXiv 2004.07219.
[3] Zhang et al., QMP, ICLR 2025, arXiv 2302.00671; https://github.com/clvrai/qmp, environments/kitchen/v0.
"""

import atexit
import functools
import math
from typing import NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

from envs.tasks import check_task
from envs.viewer import ROBOTICS


class Element(NamedTuple):
    """What two opposite tasks move, a row of the module's table; pairs are in the order of the tasks."""

    name: str
    states: tuple[str, str]
    joints: slice  # of qpos
    site: str  # the point of the element that the hand is to reach
    active: tuple[float, ...]  # joints when open or on
    success_distances: tuple[float, float]


ELEMENTS = (
    Element("slide-cabinet", ("open", "close"), slice(19, 20), "slide_site", (0.37,), (0.1, 0.1)),
    Element("hinge-cabinet", ("open", "close"), slice(20, 22), "hinge_site2", (0.0, 1.45), (0.1, 0.3)),
    Element("bottom-burner", ("on", "off"), slice(11, 13), "knob2_site", (-0.88, -0.01), (0.3, 0.3)),
    Element("top-burner", ("on", "off"), slice(15, 17), "knob4_site", (-0.92, -0.01), (0.3, 0.3)),
    Element("light", ("on", "off"), slice(17, 19), "light_site", (-0.69, -0.05), (0.3, 0.3)),
)
TASKS = tuple(f"{element.name}-{state}" for element in ELEMENTS for state in element.states)

FRAME_SKIP, STEP_SECONDS = 40, 0.08
MAX_VELOCITY = 2.0
REACH_DISTANCE = 0.08
REWARD_SCALE, SUCCESS_REWARD = 20.0, 2800.0
# Noise of the observation [30], in qpos's order; limits of the servos' targets [9], start of qpos [30].
NOISE = np.repeat([1e-2, 5e-4, 5e-5, 5e-4, 1e-2, 5e-4, 1e-2, 5e-4], [9, 2, 6, 3, 3, 3, 3, 1])
SERVO_LOW = np.array([-2.9, -1.8, -2.9, -3.1, -2.9, 0.0, -2.9, 0.0, 0.0])
SERVO_HIGH = np.array([2.9, 1.8, 2.9, 0.0, 2.9, 3.8, 2.9, 0.04, 0.04])
START = np.array(
    # arm and fingers
    [1.48388023e-01, -1.76848573e00, 1.84390296e00, -2.47685760e00, 2.60252026e-01, 7.12533105e-01, 1.59515394e00]
    + [4.79267505e-02, 3.71350919e-02]
    # burners, light
    + [-2.66279850e-04, -5.18043486e-05, 3.12877220e-05, -4.51199853e-05, -3.90842156e-06, -4.22629655e-05]
    + [6.28065475e-05, 4.04984708e-05, 4.62730939e-04, -2.26906415e-04]
    # cabinets, microwave, kettle
    + [-4.65501369e-04, -6.44129196e-03, -1.77048263e-03, 1.08009684e-03]
    + [-2.69397440e-01, 3.50383255e-01, 1.61944683e00, 1.00618764e00, 4.06395120e-03, -6.62095997e-03, -2.68278933e-04]
)


@functools.cache
def load_model(visual: bool) -> mujoco.MjModel:
    """The kitchen for drawing (60 MB), or without what is only seen, for simulation (0.7 MB); one per process."""
    spec = mujoco.MjSpec.from_file(str(ROBOTICS / "assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"))
    spec.compiler.discardvisual = not visual
    model = spec.compile()
    model.vis.global_.offwidth = model.vis.global_.offheight = 320
    model.vis.quality.shadowsize = 0  # without a GPU, shadows take most of the time of a frame
    return model


@functools.cache
def load_viewer() -> OffScreenViewer:
    """What all environments of a process draw with: one for each would take seconds and 220 MB every time."""
    model = load_model(visual=True)
    viewer = OffScreenViewer(model, mujoco.MjData(model), 320, 320)
    viewer.cam.lookat[:] = -0.2, 0.5, 2.1
    viewer.cam.distance, viewer.cam.azimuth, viewer.cam.elevation = 2.4, 70.0, -25.0
    atexit.register(viewer.close)
    return viewer


def tolerance(x: float, bound: float, margin: float) -> float:
    """1 up to `bound`, then falling as a Gaussian to 0.1 at `bound + margin`."""
    return 0.1 ** ((max(x - bound, 0.0) / margin) ** 2)


class KitchenMT10(gym.Env):
    """Task number `task` (0 to 9) of the kitchen; see the module's docstring for spaces and rewards."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12}

    def __init__(self, task: int, render_mode: str | None = None):
        self.task = check_task("KitchenMT10", task, len(TASKS))
        self.element, undo = ELEMENTS[self.task // 2], self.task % 2
        self.success_distance = self.element.success_distances[undo]
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (60,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (9,), np.float32)

        joints = self.element.joints
        start, goal = (START[joints], self.element.active)[:: -1 if undo else 1]
        self.start, self.goal = START.copy(), np.zeros(30)
        self.start[joints], self.goal[joints] = start, goal
        self.model = load_model(visual=False)
        self.data = mujoco.MjData(self.model)
        self._fingers = [self.model.body(f"panda0_{side}finger").id for side in ("left", "right")]
        self._hand, self._site = (self.model.site(name).id for name in ("end_effector", self.element.site))

    def _observe(self) -> np.ndarray:
        self._observed = self.data.qpos + NOISE * self.np_random.uniform(-1.0, 1.0, 30)
        return np.concatenate((self._observed, self.goal)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self.start
        mujoco.mj_forward(self.model, self.data)
        joints, sites = self.element.joints, self.data.site_xpos
        self._margins = (
            abs(math.dist(self.start[joints], self.goal[joints]) - self.success_distance),
            abs(math.dist(sites[self._hand], sites[self._site]) - REACH_DISTANCE),
        )
        return self._observe(), {}

    def step(self, action: np.ndarray):
        velocity = MAX_VELOCITY * np.clip(action, -1.0, 1.0, dtype=np.float64)
        self.data.ctrl[:] = np.clip(self._observed[:9] + velocity * STEP_SECONDS, SERVO_LOW, SERVO_HIGH)
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        mujoco.mj_kinematics(self.model, self.data)  # which mj_step leaves one step of the simulation behind

        obs, joints = self._observe(), self.element.joints
        distance = math.dist(self._observed[joints], self.goal[joints])
        reach = math.dist(self.data.xpos[self._fingers].mean(0), self.data.site_xpos[self._site])
        success = distance < self.success_distance
        in_place = tolerance(distance, self.success_distance, self._margins[0])
        at_hand = tolerance(reach, REACH_DISTANCE, self._margins[1])
        reward = SUCCESS_REWARD if success else REWARD_SCALE * (0.4 * in_place + 0.6 * at_hand - 1.0)
        return obs, reward, success, False, {"success": success}

    def render(self) -> np.ndarray | None:
        """An RGB image, uint8 [320, 320, 3]; the element's goal is drawn in transparent green."""
        if self.render_mode is None:
            return None
        viewer = load_viewer()
        model, data = viewer.model, viewer.data
        viewer.make_context_current()  # Gymnasium draws in whichever OpenGL context came last
        data.qpos[:] = self.data.qpos
        data.qpos[self.element.joints] = self.goal[self.element.joints]
        mujoco.mj_kinematics(model, data)
        moving = model.geom_bodyid == model.site(self.element.site).bodyid
        for i in np.flatnonzero(moving & (model.geom_group < 3)):  # higher groups are not drawn
            pose = {"pos": data.geom_xpos[i].copy(), "mat": data.geom_xmat[i].copy()}
            viewer.add_marker(type=model.geom_type[i], size=model.geom_size[i], **pose, rgba=(0.1, 0.9, 0.2, 0.4))
        data.qpos[:] = self.data.qpos
        mujoco.mj_forward(model, data)
        return viewer.render("rgb_array")
