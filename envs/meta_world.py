"""Meta-World's MT10 and MT50: one robot arm, ten or fifty manipulation tasks, one environment per task.

A Sawyer arm with a two-finger gripper stands at a table; `task` is the position of the task in Meta-World's own order
(`list(BENCHMARKS["MT10"])`). The simulation, rewards ("v2") and success tests are those of `metaworld` 3 [1], [2].

Action, float32 in [-1, 1], shape (4,); a step lasts 0.0125 s:

| index | meaning |
|---|---|
| 0-2 | move of the point that the hand follows, along x, y, z, in centimetres |
| 3 | gripper effort: 1 closes, -1 opens |

Observation, float32, shape (39,), without the task id; positions in metres:

| index | meaning |
|---|---|
| 0-2 | position of the hand |
| 3 | opening of the gripper, from 0 (closed) to 1 |
| 4-6, 7-10 | position and quaternion of the first object (the task decides whether w comes first or last) |
| 11-13, 14-17 | the same of the second object; zeros where there is none |
| 18-35 | entries 0-17 one step earlier |
| 36-38 | position of the goal |

Reward: dense, from 0 to 10 a step. The minimum reward for UDS is 0.
Success: `info["success"]` (bool) tells whether the task is solved in this state. By Meta-World's definition an episode
is a success if any of its steps was. Episodes never terminate; registration limits them to 500 steps, which is also
where Meta-World refuses to go on.

Goals: each task has fifty; a goal is a place for the objects and the target. Goal k depends on `goal_seed`, the task's
name and k alone. A reset picks k with the environment's own generator, unless given `options={"goal": k}`, and reports
it as `info["goal"]`.

What differs from `metaworld.make_mt_envs`, and why (times from a two-core machine):
- `reset(seed=...)` decides which goals the episodes get. There it is ignored, and all tasks start from one seed.
- Goals are drawn when first needed, by generators of their own. There, NumPy's global generator draws them all at the
  start, which takes 7 s for MT10 and 35 s for MT50; loading the models, all we do then, takes 1.3 s and 8 s.
- The slowest Python in a step is replaced, see `Lean`; observations and rewards stay the same to the last bit.
- No one-hot task id, no termination on success, and only `success` in `info`.

A hundred environments (MT50 for training and for evaluation) occupy 2.3 GB in one process. Nearly all of it is the
models, 20 MB each, which cannot be shared: Meta-World moves their bodies at each reset.

[1] Yu et al., Meta-World, CoRL 2019, arXiv 1910.10897. [2] McLean et al., Meta-World+, 2025, arXiv 2505.11289.
"""

from __future__ import annotations

import functools
import pickle
from types import FunctionType, SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
from metaworld.env_dict import MT10_V3, MT50_V3
from metaworld.types import Task
from scipy.spatial.transform import Rotation

from envs.tasks import task_number

BENCHMARKS = {"MT10": MT10_V3, "MT50": MT50_V3}
NUM_GOALS = 50
CAMERA = {"lookat": np.array([0.0, 0.55, 0.12]), "distance": 1.7, "azimuth": 145.0, "elevation": -30.0}

from_matrix = functools.partial(Rotation.from_matrix, assume_valid=True)
try:
    from_matrix(np.eye(3))
except TypeError:  # SciPy before 1.17 lacks the argument
    from_matrix = Rotation.from_matrix


class Lean:
    """The slow methods of Meta-World's environments, rewritten, with the same results.

    Steps per second grow by a factor of 1.05 to 2.1, of 1.4 over MT10, most where the task asks for contacts. Of what
    remains, the larger part is MuJoCo itself.
    """

    def touching_object(self, object_geom_id: int) -> bool:
        """Whether both finger pads press on the geom."""
        contact = self.data.contact
        geom1, geom2 = contact.geom1, contact.geom2  # [contacts]
        on_object = (geom1 == object_geom_id) | (geom2 == object_geom_id)
        for name in ("leftpad_geom", "rightpad_geom"):
            pad = self.data.geom(name).id
            pressing = contact.efc_address[on_object & ((geom1 == pad) | (geom2 == pad))]
            if not self.data.efc_force[pressing].sum() > 0:
                return False
        return True

    def _get_curr_obs_combined_no_goal(self) -> np.ndarray:
        """Hand (3), gripper (1), then position and quaternion of each object, padded with zeros: [18]."""
        fingers = self.data.body("rightclaw").xpos - self.data.body("leftclaw").xpos
        positions, quaternions = self._get_pos_objects(), self._get_quat_objects()
        objects = np.hstack((np.reshape(positions, (-1, 3)), np.reshape(quaternions, (-1, 4))))  # [objects, 7]
        obs = np.zeros(18)
        obs[:3] = self.get_endeff_pos()
        obs[3] = min(np.linalg.norm(fingers) / 0.1, 1.0)
        obs[4 : 4 + objects.size] = objects.ravel()
        return obs

    def _step_mujoco_simulation(self, ctrl, n_frames: int) -> None:
        """Without Gymnasium's `mj_rnePostConstraint`, whose forces no task reads."""
        self.data.ctrl[:] = ctrl
        mujoco.mj_step(self.model, self.data, nstep=n_frames)


@functools.cache
def lean(env_cls: type) -> type:
    """A subclass of a Meta-World task with the methods of `Lean`; Meta-World itself is left as it is."""
    # Many tasks get their quaternions from SciPy's Rotation, which spends most of its time on checking that it is given
    # a rotation matrix. MuJoCo's matrices always are, so the method gets a Rotation that trusts them.
    method = env_cls._get_quat_objects
    names = {**method.__globals__, "Rotation": SimpleNamespace(from_matrix=from_matrix)}
    quat_objects = FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    return type(env_cls.__name__, (Lean, env_cls), {"_get_quat_objects": quat_objects})


class DrawnEnv(gym.Env):
    """An environment around one of Meta-World's, `env`, which draws it as its `render_mode` says."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}

    def render(self) -> np.ndarray | None:
        """An RGB image, uint8 [320, 320, 3]; None without a `render_mode`."""
        if self.render_mode is None:
            return None
        # Several environments may draw in one process, but Gymnasium draws in whichever OpenGL context came last.
        self.env.mujoco_renderer._get_viewer("rgb_array").make_context_current()
        return self.env.render()

    def close(self) -> None:
        """Free what drawing has taken."""
        self.env.close()


class MetaWorld(DrawnEnv):
    """Task number `task` of Meta-World's `benchmark`, "MT10" or "MT50"."""

    def __init__(self, benchmark: str, task: int, goal_seed: int = 0, render_mode: str | None = None):
        if benchmark not in BENCHMARKS:
            raise ValueError(f"benchmark must be one of {', '.join(BENCHMARKS)}, got {benchmark!r}")
        names = list(BENCHMARKS[benchmark])
        self.task_name = names[task_number(benchmark, task, len(names))]
        self.goal_seed = goal_seed
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

        env_cls = BENCHMARKS[benchmark][self.task_name]
        self.env = lean(env_cls)(render_mode=render_mode, width=320, height=320)
        # Meta-World's corner cameras hang upside down; this free one stands beside the arm and looks over the table.
        self.env.mujoco_renderer.default_cam_config = CAMERA
        self.env.model.vis.quality.shadowsize = 0  # without a GPU, shadows take two thirds of the time of a frame
        # Makes the goal observable; which goal (`rand_vec`) is set at each reset.
        settings = {"env_cls": env_cls, "rand_vec": None, "partially_observable": False}
        self.env.set_task(Task(env_name=self.task_name, data=pickle.dumps(settings)))
        self.env.seeded_rand_vec = True  # draw with env.np_random instead of NumPy's global generator
        self._goals: dict[int, np.ndarray] = {}

    def _goal(self, k: int) -> np.ndarray:
        """The random vector behind goal k, drawn by a reset of Meta-World's, which rejects what does not fit."""
        if k not in self._goals:
            self.env.np_random = np.random.default_rng([self.goal_seed, k, *self.task_name.encode()])
            self.env._freeze_rand_vec = False
            self.env.reset()
            self.env._freeze_rand_vec = True
            self._goals[k] = self.env._last_rand_vec.copy()
        return self._goals[k]

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        k = int(self.np_random.integers(NUM_GOALS))
        k = (options or {}).get("goal", k)
        if k not in range(NUM_GOALS):
            raise ValueError(f"options['goal'] must be an integer from 0 to {NUM_GOALS - 1}, got {k!r}")
        self.env._last_rand_vec = self._goal(k).copy()
        # Meta-World resets the model twice. Both are needed: some tasks move bodies of the model late in the first, and
        # without the second the state would depend on the goal of the previous episode.
        obs, _ = self.env.reset()
        return obs.astype(np.float32), {"goal": k}

    def step(self, action: np.ndarray):
        obs, reward, _, _, info = self.env.step(action)
        return obs.astype(np.float32), float(reward), False, False, {"success": bool(info["success"])}
