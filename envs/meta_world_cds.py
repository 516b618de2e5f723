"""MetaWorldCDS: open or close a door or a drawer, with both of them in the scene of all four tasks.

Four tasks of Meta-World [1] in one scene, put together by CDS [2] and the QMP paper: a Sawyer arm stands at a table,
behind it a door and, to the right of that, a drawer. Every policy observes both, so that it can act in any task.

Action, float32 in [-1, 1], shape (4,); a step lasts 0.0125 s:

| index | meaning |
|---|---|
| 0-2 | move of the point that the hand follows, along x, y, z, in centimetres |
| 3 | gripper effort: 1 closes, -1 opens |

Observation, float32, shape (21,), the same in all tasks; positions in metres, quaternions in Meta-World's orders:

| index | meaning |
|---|---|
| 0-2 | position of the hand |
| 3 | opening of the gripper, from 0 (closed) to 1 |
| 4-6, 7-10 | position of the drawer's handle; quaternion of the drawer, w x y z, constant because it slides |
| 11-13, 14-17 | position of the door's handle and its quaternion, x y z w |
| 18-20 | position of the goal, where the handle of the task's object shall be |

Reward, from 0 to 10, and success are Meta-World's own ("v2"): its functions are called. In outline, with h the handle,
g the goal, f the middle of the fingertips, and e how hard the action closes the gripper, from 0 to 1; L and G fall from
1 at a small distance to 0.1 at a larger one, L with a long tail, G like a Gaussian; H(a, b) = ab / (a + b - ab):

| task | reward | success |
|---|---|---|
| door-open | 2 H(hand well placed, e) + 1.6 if ajar + 6.4 L(angle to go); 10 in success | h 0.08 from g in x |
| door-close | 3 G(f to g) + 6 G(h to g); 10 within 0.05 | h 0.08 from g |
| drawer-open | 5 L(hand to h) + 5 L(h to g) | h 0.03 from g |
| drawer-close | 10 H(H(G(f to h), e), L(h to g)); 10 in success | h 0.065 from g: 9.5 cm further in |

In drawer-close h is the handle observed, as in the authors' code [3]; Meta-World's own environment takes a point 0.05
above it, which here only sets how far L and G reach.
The minimum reward for UDS is 0. An episode is a success if any of its steps was. Episodes never terminate; registration
limits them to 500 steps.

Start: the task's object stands anywhere in its box (`BOXES`), closed if it is to be opened, open if it is to be closed.
The other stands closed at the far end of its box (`APART`): with both placed at random, the handle of the closed door
would bar the drawer's way in a quarter of the episodes. The hand starts at (0, 0.6, 0.2), in door-close at
(-0.6, 0.6, 0.2).

What differs from the authors' code [3], which has the same scene, places and starts:
- Meta-World 3 instead of 2.
- Every reset draws a new place with the environment's own generator. There, fifty places are drawn at the start.
- The observation holds neither the one before nor a task id.

Meta-World 3 clips observations to boxes; here they are not, as the goals of the door's tasks and the hand's start in
door-close lie outside.

[1] Yu et al., Meta-World, CoRL 2019, arXiv 1910.10897. [2] Yu et al., Conservative Data Sharing, NeurIPS 2021, arXiv
2109.08128. [3] clvrai/qmp, `environments/metaworld/metaworld_cds.py`.
"""

import copy
import functools
import math

import gymnasium as gym
import mujoco
import numpy as np
from metaworld.asset_path_utils import full_V3_path_for
from metaworld.envs import SawyerDoorCloseEnvV3, SawyerDoorEnvV3, SawyerDrawerCloseEnvV3, SawyerDrawerOpenEnvV3

from envs.meta_world import DrawnEnv, FasterSawyer
from envs.tasks import check_task

BOXES = {"door": ((-0.1, 0.85, 0.15), (0.0, 0.95, 0.15)), "drawer": ((0.3, 0.9, 0.0), (0.4, 0.9, 0.0))}
APART = {"door": (-0.1, 0.9, 0.15), "drawer": (0.4, 0.9, 0.0)}
CAMERA = {"lookat": np.array([0.05, 0.6, 0.1]), "distance": 1.7, "azimuth": 140.0, "elevation": -35.0}


@functools.cache
def _scene() -> mujoco.MjModel:
    """Meta-World's scene of the drawer, with the door added under the names that its tasks look for.

    The drawer's joint stays the first after the robot's, at qpos[9], where its tasks write.
    """
    scene, door = (
        mujoco.MjSpec.from_file(full_V3_path_for(f"sawyer_xyz/sawyer_{name}.xml")) for name in ("drawer", "door_pull")
    )
    for kind in ("meshes", "textures", "materials"):  # without the robot and the table, which are in both
        present = {asset.name for asset in getattr(scene, kind)}
        for asset in getattr(door, kind):
            if asset.name in present:
                asset.delete()
    scene.worldbody.add_frame().attach_body(door.body("door"), "door/", "")
    for element in (scene.body("door/door"), scene.joint("door/doorjoint"), scene.geom("door/handle")):
        element.name = element.name.removeprefix("door/")
    return scene.compile()


class Scene(FasterSawyer):
    """Puts a Meta-World task about a door or a drawer into the scene that has both."""

    def _initialize_simulation(self):
        model = copy.copy(_scene())  # a reset moves its bodies
        return model, mujoco.MjData(model)

    def __getstate__(self) -> dict:  # for `copy` and `pickle`; viewers cannot be copied
        renderer = copy.copy(self.mujoco_renderer)
        renderer._viewers, renderer.viewer = {}, None
        return {**self.__dict__, "mujoco_renderer": renderer}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)  # Meta-World's own way would start a new simulation, without the other object


class DoorOpen(Scene, SawyerDoorEnvV3):
    """Meta-World's door-open in this scene."""


class DoorClose(Scene, SawyerDoorCloseEnvV3):
    """Meta-World's door-close in this scene."""


class DrawerOpen(Scene, SawyerDrawerOpenEnvV3):
    """Meta-World's drawer-open in this scene."""


class DrawerClose(Scene, SawyerDrawerCloseEnvV3):
    """Meta-World's drawer-close in this scene."""


ENVIRONMENTS = {"door-open": DoorOpen, "door-close": DoorClose, "drawer-open": DrawerOpen, "drawer-close": DrawerClose}
TASKS = tuple(ENVIRONMENTS)


class MetaWorldCDS(DrawnEnv):
    """Task `task` (0 to 3) of MetaWorldCDS; see the module's docstring. In pictures the green ball is the goal."""

    def __init__(self, task: int, render_mode: str | None = None):
        name = TASKS[check_task("MetaWorldCDS", task, len(TASKS))]
        self.render_mode = render_mode
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (21,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)

        self.env = ENVIRONMENTS[name](render_mode=render_mode, width=320, height=320)
        self.env.hand_init_pos = np.array([-0.6 if name == "door-close" else 0.0, 0.6, 0.2])
        self.env._set_task_called = True  # Meta-World's own way needs a pickled task; places are set in `reset`
        self.env.mujoco_renderer.default_cam_config = CAMERA
        self.env.model.vis.quality.shadowsize = 0  # without a GPU, shadows take most of the time of a frame
        self._object, self._other = ("door", "drawer") if name.startswith("door") else ("drawer", "door")
        self._observed_object = slice(11, 18) if self._object == "door" else slice(4, 11)
        bodies = ("hand", "rightclaw", "leftclaw", "drawer_link")
        self._hand, self._right, self._left, self._drawer = (self.env.model.body(body).id for body in bodies)
        self._handle = self.env.model.geom("handle").id

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        place = self.np_random.uniform(*BOXES[self._object])
        # Bodies are placed first: Meta-World places its own only after it has moved the hand, and then the state would
        # depend on the episode before.
        self.env.model.body(self._object).pos = place
        self.env.model.body(self._other).pos = APART[self._other]
        mujoco.mj_resetData(self.env.model, self.env.data)
        self.env._last_rand_vec = place
        self.env.reset_model()
        mujoco.mj_kinematics(self.env.model, self.env.data)
        return self._observe().astype(np.float32), {}

    def step(self, action: np.ndarray):
        env = self.env
        env.set_xyz_action(action[:3])
        env._step_mujoco_simulation((action[3], -action[3]), env.frame_skip)
        mujoco.mj_kinematics(env.model, env.data)  # all that observations and rewards read: positions
        obs = self._observe()
        # What Meta-World's functions read of its own observation: the hand, the gripper and the task's own object.
        reward, info = env.evaluate_state(np.concatenate((obs[:4], obs[self._observed_object])), action)
        return obs.astype(np.float32), float(reward), False, False, {"success": bool(info["success"])}

    def _observe(self) -> np.ndarray:
        """The observation [21] in double precision."""
        data = self.env.data
        positions = data.xpos
        opening = min(math.dist(positions[self._right], positions[self._left]) / 0.1, 1.0)
        quat = np.empty(4)
        mujoco.mju_mat2Quat(quat, data.geom_xmat[self._handle])
        return np.concatenate(
            (
                positions[self._hand],
                (opening,),
                positions[self._drawer] + (0.0, -0.16, 0.0),
                data.xquat[self._drawer],
                data.geom_xpos[self._handle],
                quat[[1, 2, 3, 0]],
                self.env._target_pos,
            )
        )
