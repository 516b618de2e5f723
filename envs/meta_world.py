"""Meta-World's MT10, MT25 and MT50, and any other choice of its fifty tasks: one robot arm, one environment per task.

A Sawyer arm with a two-finger gripper stands at a table; `task` is the position of the task in `tasks`, names from
`ALL_TASKS`. `TASK_SETS` holds Meta-World's own sets, in its order. The simulation, rewards ("v2") and success tests are
those of `metaworld` 3 [1], [2].

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

Goals: each task has fifty for training and, as in the QMP authors' code, fifty others for evaluation; a goal is a place
for the objects and the target. Goal k depends on the task's name, `evaluation` and k alone; a reset reports k as
`info["goal"]`.
- In training a reset picks k with the environment's own generator.
- In evaluation goals come in order: `reset(seed=...)` starts at goal 0 and every reset without a seed takes the next
  one. Fifty episodes are Meta-World's protocol, one for each goal; fewer are always the same goals.

What differs from `metaworld.make_mt_envs`, and why (times from a two-core machine):
- `reset(seed=...)` decides which goals the episodes get. There it is ignored, and all tasks start from one seed.
- Goals are drawn when first needed, by generators of their own. There, NumPy's global generator draws them all at the
  start, which takes 7 s for MT10 and 35 s for MT50; loading the models, all we do then, takes 1.3 s and 8 s.
- The slowest Python in a step is replaced, see `FasterSawyer`; observations and rewards stay the same to the last bit.
- No one-hot task id, no termination on success, and only `success` in `info`.
- `copy.deepcopy` and `pickle` make a copy that goes on as the original would.

A hundred environments (MT50 for training and for evaluation) occupy 2.4 GB in one process. Nearly all of it is the
models, 20 MB each, which cannot be shared: Meta-World moves their bodies at each reset.

[1] Yu et al., Meta-World, CoRL 2019, arXiv 1910.10897. [2] McLean et al., Meta-World+, 2025, arXiv 2505.11289.
"""

import difflib
import functools
import pickle
from types import FunctionType, SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS, MT10_V3, MT25_V3
from metaworld.types import Task
from scipy.spatial.transform import Rotation

from envs.tasks import check_task

ALL_TASKS = tuple(ALL_V3_ENVIRONMENTS)
TASK_SETS = {"MT10": tuple(MT10_V3), "MT25": tuple(MT25_V3), "MT50": ALL_TASKS}
NUM_GOALS = 50
CAMERA = {"lookat": np.array([0.0, 0.55, 0.12]), "distance": 1.7, "azimuth": 145.0, "elevation": -30.0}

from_matrix = functools.partial(Rotation.from_matrix, assume_valid=True)
try:
    from_matrix(np.eye(3))
except TypeError:  # SciPy before 1.17 lacks the argument
    from_matrix = Rotation.from_matrix


class FasterSawyer:
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
def faster(env_cls: type) -> type:
    """A subclass of a Meta-World task with the methods of `FasterSawyer`; Meta-World itself is left as it is."""
    # Many tasks get their quaternions from SciPy's Rotation, which spends most of its time on checking that it is given
    # a rotation matrix. MuJoCo's matrices always are, so the method gets a Rotation that trusts them.
    method = env_cls._get_quat_objects
    names = {**method.__globals__, "Rotation": SimpleNamespace(from_matrix=from_matrix)}
    quat_objects = FunctionType(method.__code__, names, method.__name__, method.__defaults__, method.__closure__)
    return type(env_cls.__name__, (FasterSawyer, env_cls), {"_get_quat_objects": quat_objects})


def check_names(tasks: tuple[str, ...]) -> None:
    """Raise ValueError unless `tasks` are different names of Meta-World's tasks."""
    for name in tasks:
        if name not in ALL_TASKS:
            close = difflib.get_close_matches(name, ALL_TASKS, n=1, cutoff=0.0)[0]
            allowed = ", ".join(ALL_TASKS)
            raise ValueError(f"unknown Meta-World task '{name}'; did you mean '{close}'? Allowed: {allowed}")
    if len(set(tasks)) < len(tasks):
        raise ValueError(f"a Meta-World task is named twice in {', '.join(tasks)}")


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
    """Task `tasks[task]` of Meta-World, with its training goals or its evaluation goals.

    Args:
        tasks: names from `ALL_TASKS`, for example `TASK_SETS["MT10"]`.
        task: position in `tasks`.
        evaluation: take the evaluation goals, in order.
        render_mode: None or "rgb_array".

    Raises:
        ValueError: Meta-World has no task of this name, or `tasks` has no such position.
    """

    def __init__(self, tasks: tuple[str, ...], task: int, evaluation: bool = False, render_mode: str | None = None):
        check_names(tasks)
        self.task_name = tasks[check_task("MetaWorld", task, len(tasks))]
        self.evaluation = evaluation
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self._goals: dict[int, np.ndarray] = {}
        self._goal_number: int | None = None  # of this episode
        self._actions: list[np.ndarray] = []  # of this episode
        self.env = self._make_env()

    def _make_env(self):
        """Meta-World's own environment, with the goal observable and a camera beside the arm."""
        env_cls = ALL_V3_ENVIRONMENTS[self.task_name]
        env = faster(env_cls)(render_mode=self.render_mode, width=320, height=320)
        # Meta-World's corner cameras hang upside down; this free one stands beside the arm and looks over the table.
        env.mujoco_renderer.default_cam_config = CAMERA
        env.model.vis.quality.shadowsize = 0  # without a GPU, shadows take two thirds of the time of a frame
        # Makes the goal observable; which goal (`rand_vec`) is set at each reset.
        settings = {"env_cls": env_cls, "rand_vec": None, "partially_observable": False}
        env.set_task(Task(env_name=self.task_name, data=pickle.dumps(settings)))
        env.seeded_rand_vec = True  # draw with env.np_random instead of NumPy's global generator
        return env

    def _goal(self, k: int) -> np.ndarray:
        """The random vector behind goal k, drawn by a reset of Meta-World's, which rejects what does not fit."""
        if k not in self._goals:
            self.env.np_random = np.random.default_rng([int(self.evaluation), k, *self.task_name.encode()])
            self.env._freeze_rand_vec = False
            self.env.reset()
            self.env._freeze_rand_vec = True
            self._goals[k] = self.env._last_rand_vec.copy()
        return self._goals[k]

    def _start_episode(self, k: int) -> np.ndarray:
        """Start an episode with goal k; returns the first observation [39]."""
        self._goal_number, self._actions = k, []
        self.env._last_rand_vec = self._goal(k).copy()
        # Meta-World resets the model twice. Both are needed: some tasks move bodies of the model late in the first, and
        # without the second the state would depend on the goal of the previous episode.
        obs, _ = self.env.reset()
        return obs.astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        if not self.evaluation:
            k = int(self.np_random.integers(NUM_GOALS))
        elif seed is not None or self._goal_number is None:
            k = 0
        else:
            k = (self._goal_number + 1) % NUM_GOALS
        return self._start_episode(k), {"goal": k}

    def step(self, action: np.ndarray):
        obs, reward, _, _, info = self.env.step(action)
        self._actions.append(np.array(action))
        return obs.astype(np.float32), float(reward), False, False, {"success": bool(info["success"])}

    def __getstate__(self) -> dict:
        """What a copy is made from, for `copy` and `pickle`: all but Meta-World's environment and its viewer."""
        return {name: value for name, value in vars(self).items() if name != "env"}

    def __setstate__(self, state: dict) -> None:
        """Make a copy: load the model, then repeat the episode so far, which its goal and actions determine."""
        # Meta-World's environment cannot be copied itself: it keeps views into the simulation's arrays.
        vars(self).update(state)
        self.env = self._make_env()
        if self._goal_number is not None:
            actions = self._actions
            self._start_episode(self._goal_number)
            for action in actions:
                self.step(action)
