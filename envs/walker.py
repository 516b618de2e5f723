"""Walker2dMT4: one two-legged walker in the plane, four tasks: forward, backward, balance and crawl under a ceiling.

The model is Gymnasium's `walker2d_v5.xml`, read from that package, with friction 0.9 instead of 1.9 at the right foot.
For crawl there is a ceiling from x = 2 to 14 m, its underside 0.9 m above the floor; the walker starts at x = 0 and
stands 1.5 m tall.

Action, float32 in [-1, 1], shape (6,): torques in units of 100 Nm. A step lasts 0.008 s (four of the simulation's).

| index | joint |
|---|---|
| 0, 1, 2 | right hip, knee, ankle (in the model: thigh, leg, foot) |
| 3, 4, 5 | left hip, knee, ankle |

Observation, float32, shape (17,); neither x nor the ceiling is observed:

| index | meaning | unit |
|---|---|---|
| 0, 1 | height h and pitch of the torso | m, rad |
| 2-4, 5-7 | angles of the right, of the left hip, knee, ankle | rad |
| 8, 9 | velocity of the torso along x, z, clipped to [-10, 10] | m/s |
| 10 | angular velocity of the torso, clipped to [-10, 10] | rad/s |
| 11-13, 14-16 | angular velocities of the right, of the left hip, knee, ankle, clipped to [-10, 10] | rad/s |

Reward, with v the mean velocity of the torso along x during the step, f the sum of both ankles' mean absolute angular
velocities, and D the height of the torso above the higher foot body (1.25 m when the walker stands straight):

    common   = 1 + 0.1 cos(pitch) - 0.001 sum(action^2)
    forward  = common + 3 - |v - 3| - |1.1 - D| - 0.01 f
    backward = common + 3 - |-v - 3| - |1.1 - D| - 0.01 f
    balance  = common - |v| - 0.5 |1.1 - D|
    crawl    = common + 2 (3 - |v - 3|) - 0.01 f - 10 if the walker touches the ceiling

Minimum reward, for UDS: 0, upstream's choice; single steps (the wrong way, a fall, the ceiling) can have less.
Termination: h < 0.8 (crawl: 0.3), or a touch of the ceiling. Registration limits episodes to 1000 steps.
Success: 1000 steps survived, so true in the last step of a full episode only; a walker that just stands succeeds too.
Start: the model's upright pose with uniform noise of +-0.01 on every position and velocity, then 5 steps (balance: 10)
with uniform actions.

Source: the QMP paper's Walker2D; tasks and numbers are those of clvrai/qmp ("Walker2dMT4-v0"), which builds on
youngwoon/transition. Differences: there, the noise comes from NumPy's global generator and the random actions from an
unseeded action space; D is taken from the last intermediate state of the Runge-Kutta integrator instead of the step's
end (up to 1 mm away); crawl has further boxes, out of the way; and surviving to 1000 steps is terminal, so that nothing
is expected to follow. Here that step is truncated, and its value bootstrapped.
"""

import math
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

from envs.tasks import check_task
from envs.viewer import ViewedEnv

TASKS = ("forward", "backward", "balance", "crawl")
SURVIVAL_STEPS = 1000
FRAME_SKIP = 4
START_NOISE = 0.01
TARGET_VELOCITY = 3.0
TARGET_HEIGHT = 1.1  # of the torso above the higher foot
X, HEIGHT, PITCH, RIGHT_ANKLE, LEFT_ANKLE = 0, 1, 2, 5, 8  # indices of qpos


def load_model(ceiling: bool) -> mujoco.MjModel:
    """Gymnasium's walker with the right foot's friction lowered and, if `ceiling`, a geom of that name."""
    path = Path(gym.__file__).parent / "envs" / "mujoco" / "assets" / "walker2d_v5.xml"
    spec = mujoco.MjSpec.from_file(str(path))
    spec.geom("foot_geom").friction[0] = 0.9
    if ceiling:
        # In a body of its own: were it the world's second geom, the collision search would make steps a seventh slower.
        spec.worldbody.add_body().add_geom(
            name="ceiling",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[8.0, 0.0, 1.0],
            size=[6.0, 2.0, 0.1],
            rgba=[0.3, 0.3, 0.9, 0.4],
            conaffinity=1,
        )
    # Without a GPU, shadows, smoothed edges and the floor's reflections take most of the time of a frame.
    spec.visual.quality.shadowsize = spec.visual.quality.offsamples = 0
    spec.material("MatPlane").reflectance = 0.0
    return spec.compile()


class Walker2dMT4(ViewedEnv):
    """Task `task` (0 to 3) of Walker2dMT4; see the module's docstring for spaces and rewards."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 125}

    def __init__(self, task: int, render_mode: str | None = None):
        self.task_name = TASKS[check_task("Walker2dMT4", task, len(TASKS))]
        super().__init__(load_model(ceiling=self.task_name == "crawl"), render_mode)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (17,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

        self.torso, self.right_foot, self.left_foot = (self.model.body(n).id for n in ("torso", "foot", "foot_left"))
        self.ceiling = self.model.geom("ceiling").id if self.task_name == "crawl" else -1
        self.direction = -1.0 if self.task_name == "backward" else 1.0
        self.min_height = 0.3 if self.task_name == "crawl" else 0.8
        self.dt = FRAME_SKIP * self.model.opt.timestep

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.qpos += self.np_random.uniform(-START_NOISE, START_NOISE, self.qpos.size)
        self.qvel[:] = self.np_random.uniform(-START_NOISE, START_NOISE, self.qvel.size)
        for _ in range(10 if self.task_name == "balance" else 5):
            self._simulate(self.np_random.uniform(-1.0, 1.0, self.ctrl.size))
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        before = self.qpos.tolist()
        self._simulate(action)
        after = self.qpos.tolist()
        touched = self.ceiling >= 0 and self.ceiling in self.data.contact.geom.ravel().tolist()

        velocity = (after[X] - before[X]) / self.dt
        ankle_speed = sum(abs(after[i] - before[i]) for i in (RIGHT_ANKLE, LEFT_ANKLE)) / self.dt
        height = self.xpos[:, 2]
        leg_height = height[self.torso] - max(height[self.right_foot], height[self.left_foot])
        height_error = abs(TARGET_HEIGHT - leg_height)
        speed_reward = TARGET_VELOCITY - abs(self.direction * velocity - TARGET_VELOCITY)

        reward = 1.0 + 0.1 * math.cos(after[PITCH]) - 0.001 * (self.ctrl @ self.ctrl)
        if self.task_name == "balance":
            reward += -abs(velocity) - 0.5 * height_error
        elif self.task_name == "crawl":
            reward += 2.0 * speed_reward - 0.01 * ankle_speed - 10.0 * touched
        else:
            reward += speed_reward - height_error - 0.01 * ankle_speed

        self.steps += 1
        terminated = touched or after[HEIGHT] < self.min_height
        success = not terminated and self.steps >= SURVIVAL_STEPS
        return self._observation(), float(reward), terminated, False, {"success": success}

    def _simulate(self, action: np.ndarray) -> None:
        self.ctrl[:] = action
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        mujoco.mj_kinematics(self.model, self.data)  # a step leaves the bodies where they were shortly before its end

    def _observation(self) -> np.ndarray:
        return np.concatenate((self.qpos[1:], np.clip(self.qvel, -10.0, 10.0)), dtype=np.float32)

    def render(self) -> np.ndarray | None:
        """The walker from the side, uint8 [240, 320, 3], the camera following it; the ceiling is blue glass."""
        if self.render_mode is None:
            return None
        viewer = self.prepare_viewer(
            320, 240, lookat=(self.qpos[X], 0.0, 0.8), distance=4.0, azimuth=90.0, elevation=-8.0
        )
        return viewer.render("rgb_array")
