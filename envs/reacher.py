"""MultistageReacher: a torque-controlled six-joint arm touches three sub-goals in the task's order.

The arm has the kinematics and inertia of a Kinova Jaco, with capsules for links. Sub-goals, in metres, and tasks:

| | position | | task | order |
|---|---|---|---|---|
| S0 | (0.2, 0.3, 0.5) | | 0 | S0, S1, S2 |
| S1 | (0.3, 0, 0.3) | | 1 | S0, S1, S3 |
| S2 | (0.4, -0.3, 0.4) | | 2 | S1, S3, S2 |
| S3 | (0.4, 0.3, 0.2) | | 3 | S1, S2, S0, without the distance in its reward |
| start | (0.41, 0.119, 0.239) | | 4 | stay at the hand's position in the model's default pose |

A sub-goal is reached when the origin of the hand is less than 0.05 m from it; that completes the stage. In task 4 every
30 steps spent so near, in a row or not, complete a stage.

Action, float32 in [-1, 1], shape (6,): the joints' torques, from the base on, in units of 5, 10, 10, 10, 10, 10 N m.
A step lasts 0.04 s, four of the simulation.

Observation, float32, shape (15,). The goals are not observed: each policy learns its own.

| index | meaning |
|---|---|
| 0-5 | angles of the joints, in rad |
| 6-11 | their velocities, in rad/s |
| 12-14 | one-hot of the stage; zeros once all three are completed |

Reward = distance term + stage term + control term, from the state after the step; d is the distance to the sub-goal
that the step was for, `stages` counts the stages completed by now, q the angles:

| tasks | distance term | stage term |
|---|---|---|
| 0, 2 | -d | -0.4 (3 - stages) |
| 1 | -d | -2, and 200 more when a sub-goal is reached |
| 3 | 0 | -0.4 (3 - stages) |
| 4 | -d | 0 |

Control term: -0.01 sum(action^2) - 0.001 mean|dq/dt| - 0.00001 mean|d2q/dt2|, the accelerations being those of the last
simulation step. The minimum reward is above -4 in task 1, above -3 in the others; for UDS the authors take -5.
Episodes terminate when all three stages are completed; registration limits them to 200 steps.
Info: `success`, all three completed, and the metrics `stages_completed`, 0 to 3, and `first_stage`, the paper's success
rate: whether any step of the episode so far has ended less than 0.05 m from its sub-goal. In task 4 that is nearly
free, as it is in the paper: the arm starts there, and with uniform actions the first step met it in 993 of 1,000
episodes.
Start: the default pose with uniform noise of 0.01 rad, velocities uniform within 0.001 rad/s.

What is peculiar to this arm, as it is to the authors':
- Joint 5 starts at -2.8 rad, far below its limits, which swing it to about -0.7 rad within six steps.
- The motor of joint 2, 10 N m strong, cannot hold the arm still at S2, at S3 or in the default pose: gravity asks for
  at least 10.1 N m anywhere within the radius of S2, for 10.9 of S3, and for 10.7 in the default pose. S2 and S3 can
  only be touched in passing; around the start the arm sinks, and has to fold and rise again from time to time.

Source: Zhang et al. 2025, arXiv 2302.00671, and their code, clvrai/qmp. What differs from the code: capsules instead of
meshes, so that contacts with the floor differ a little; the position of the hand belongs to the angles observed (theirs
is one simulation step older), and so does the stage (theirs lags a step); their evaluation of task 4 ends after three
steps at the goal, not 90, and measures from another place; a simulation that breaks down is not caught.
"""

import math

import gymnasium as gym
import mujoco
import numpy as np

from envs.tasks import check_task
from envs.viewer import ViewedEnv

TASKS = ("reach-0-1-2", "reach-0-1-3", "reach-1-3-2", "reach-1-2-0-sparse", "stay")
SUBGOALS = ((0.2, 0.3, 0.5), (0.3, 0.0, 0.3), (0.4, -0.3, 0.4), (0.4, 0.3, 0.2))
ORDERS = ((0, 1, 2), (0, 1, 3), (1, 3, 2), (1, 2, 0))
BONUS_TASK, SPARSE_TASK, STAY_TASK = 1, 3, 4
STAGES = 3
STAGE_ONE_HOT = np.eye(STAGES + 1, STAGES, dtype=np.float32)  # the last row: all stages completed
RADIUS = 0.05
STAY_STEPS = 30
FRAME_SKIP = 4
COLORS = ((0.12, 0.47, 0.71), (1.0, 0.5, 0.05), (0.17, 0.63, 0.17), (0.84, 0.15, 0.16), (0.58, 0.4, 0.74))

# Position (m) and orientation (quaternion, w first) in the parent's frame; direction along z of the hinge's axis, its
# limits (rad), its angle in the default pose (rad), gear of its motor (N m); radius of the capsule (m).
CHAIN = """
base   0      0 0.25     1        0         0         0         0  0         0         0    0   0.05
link-1 0      0 0.1535   0        0         1         0         -1 -0.8      0.8       0    5   0.045
link-2 0      0 -0.1185  0        0         0.707107  0.707107  1  -1.5      0.7       0    10  0.04
link-3 0.41   0 0        0        0.707107  0.707107  0         -1 -0.698132 0.698132  0    10  0.035
link-4 0.207  0 -0.01125 0        0.707107  0         -0.707107 -1 -0.698132 0.698132  0    10  0.03
link-5 0.0343 0 -0.06588 0.887011 0         -0.461749 0         -1 -0.698132 0.698132  -2.8 10  0.03
hand   0.0343 0 -0.06588 0.627211 -0.326506 -0.326506 0.627211  -1 -0.698132 0.698132  0    10  0.04
"""
# Mass (kg), centre of mass (m), orientation of the principal axes (quaternion), moments of inertia about them (kg m2).
INERTIA = """
0.787504 -3.14012e-8 0.000451919 0.0770704 1 -0.000920048 6.51183e-6 5.62643e-5      0.00187445 0.00186316 0.000676952
0.613151 -1.14317e-6 0.0102141 -0.0637045  0.702792 0.0778988 -0.0778994 0.702813    0.00149348 0.00144012 0.000401632
1.85031  0.206657 -1.55187e-7 -0.030675    1 0 0 0                                   0.0402753 0.0398125 0.00121953
0.70372  0.0847979 -1.18469e-7 -0.020283   2.33799e-5 0.694869 1.96996e-5 0.719136   0.00386732 0.00373181 0.000358773
0.227408 0.00914824 4.53141e-8 -0.0370941  0.971237 -1.92989e-5 -0.238115 3.23646e-5 0.000176463 0.00017225 0.000108303
0.227408 0.00914824 4.53141e-8 -0.0370941  0.971237 -1.92989e-5 -0.238115 3.23646e-5 0.000176463 0.00017225 0.000108303
0.58074  0.0036132 -6.2241e-5 -0.0583749   0.669114 -0.237618 -0.23799 0.66271       0.000817146 0.000671192 0.000606807
"""


def build_model() -> mujoco.MjModel:
    """The arm above a floor, which is all that its links collide with; six motors with controls in [-1, 1]."""
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    spec.option.timestep = 0.01
    spec.option.iterations = 10
    spec.option.gravity = (0, 0, -9.8)
    spec.visual.quality.shadowsize = 0  # without a GPU, shadows would take most of the time of a frame
    plane, capsule = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_CAPSULE
    spec.worldbody.add_geom(type=plane, size=(9, 9, 1), margin=0.001, rgba=(0.9, 0.9, 0.9, 1))
    spec.worldbody.add_light(directional=True, dir=(-1, 0.5, -2))

    names = [line.split()[0] for line in CHAIN.strip().splitlines()]
    chain = np.array([line.split()[1:] for line in CHAIN.strip().splitlines()], float)
    inertia = np.array([line.split() for line in INERTIA.strip().splitlines()], float)
    # Capsules lead from joint to joint, the base's up from the floor, the hand's through its centre of mass to the tip,
    # which is twice as far from the joint.
    starts = [-chain[0, :3], *np.zeros((6, 3))]
    tip, radius = 2 * inertia[-1, 1:4], chain[-1, -1]
    ends = [*chain[1:, :3], tip * (1 - radius / np.linalg.norm(tip))]

    body = spec.worldbody
    for i, (name, frame, mass) in enumerate(zip(names, chain, inertia, strict=True)):
        direction, low, high, default, gear, radius = frame[7:]
        body = body.add_body(name=name, pos=frame[:3], quat=frame[3:7], explicitinertial=True)
        body.mass, body.ipos, body.iquat, body.inertia = mass[0], mass[1:4], mass[4:8], mass[8:]
        body.add_geom(
            type=capsule,
            fromto=[*starts[i], *ends[i]],
            size=(radius, 0, 0),
            margin=0.001,
            conaffinity=0,
            rgba=(0.3, 0.3, 0.35, 1) if i % 2 else (0.6, 0.6, 0.65, 1),
        )
        if gear:
            joint = body.add_joint(name=name, axis=(0, 0, direction), range=(low, high), limited=True)
            joint.ref, joint.damping, joint.armature = default, 0.5, 0.01
            motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
            motor.gear[0], motor.ctrlrange, motor.ctrllimited = gear, (-1, 1), True
    return spec.compile()


class MultistageReacher(ViewedEnv):
    """Task `task` (0 to 4) of MultistageReacher; see the module's docstring for spaces and rewards."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25, "metrics": ("first_stage", "stages_completed")}

    def __init__(self, task: int, render_mode: str | None = None):
        self.task = check_task("MultistageReacher", task, len(TASKS))
        super().__init__(build_model(), render_mode)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (15,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (6,), np.float32)

        self.hand = self.model.body("hand").id
        mujoco.mj_forward(self.model, self.data)
        if self.task == STAY_TASK:
            self.goals = [tuple(self.xpos[self.hand].tolist())] * STAGES
            self.colors = [COLORS[-1]] * STAGES
            self.steps_per_stage = STAY_STEPS
        else:
            self.goals = [SUBGOALS[i] for i in ORDERS[self.task]]
            self.colors = [COLORS[i] for i in ORDERS[self.task]]
            self.steps_per_stage = 1

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        self.qpos += self.np_random.uniform(-0.01, 0.01, 6)
        self.qvel[:] = self.np_random.uniform(-0.001, 0.001, 6)
        mujoco.mj_forward(self.model, self.data)
        self.steps_at_goals = 0
        self.stage = 0
        return self._observation(), {}

    def step(self, action: np.ndarray):
        self.ctrl[:] = action  # the motors clamp it
        mujoco.mj_step(self.model, self.data, nstep=FRAME_SKIP)
        mujoco.mj_kinematics(self.model, self.data)  # mj_step leaves the bodies where they were before its last step

        distance = math.dist(self.xpos[self.hand].tolist(), self.goals[self.stage])
        reached = distance < RADIUS
        self.steps_at_goals += reached
        self.stage = self.steps_at_goals // self.steps_per_stage

        reward = -(
            0.01 * float(self.ctrl.dot(self.ctrl))
            + 0.001 / 6 * sum(map(abs, self.qvel.tolist()))
            + 0.00001 / 6 * sum(map(abs, self.qacc.tolist()))
        )
        if self.task != SPARSE_TASK:
            reward -= distance
        if self.task == BONUS_TASK:
            reward += 200.0 * reached - 2.0
        elif self.task != STAY_TASK:
            reward -= 0.4 * (STAGES - self.stage)

        success = self.stage == STAGES
        info = {"success": success, "first_stage": self.steps_at_goals > 0, "stages_completed": self.stage}
        return self._observation(), reward, success, False, info

    def _observation(self) -> np.ndarray:
        obs = np.empty(15, np.float32)
        obs[:6] = self.qpos
        obs[6:12] = self.qvel
        obs[12:] = STAGE_ONE_HOT[self.stage]
        return obs

    def render(self) -> np.ndarray | None:
        """An RGB image, uint8 [320, 320, 3]: the current sub-goal as a ball of its radius, later ones as dots."""
        if self.render_mode is None:
            return None
        viewer = self.prepare_viewer(320, 320, lookat=(0.2, 0.0, 0.3), distance=1.4, azimuth=215.0, elevation=-30.0)
        for stage in range(self.stage, STAGES):
            now = stage == self.stage
            size = [RADIUS if now else RADIUS / 3] * 3
            viewer.add_marker(pos=self.goals[stage], size=size, rgba=(*self.colors[stage], 0.5 if now else 1.0))
        return viewer.render("rgb_array")
