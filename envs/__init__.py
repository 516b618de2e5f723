"""Multi-task environments: N tasks that share observation and action spaces, as one `gymnasium.vector.VectorEnv`.

    import envs
    vec = envs.make_vec("PointReach-v0", seed=1)    # sub-environment i is task i
    obs, info = vec.reset()                         # obs [N, O] float32
    obs, rewards, terminations, truncations, infos = vec.step(actions)  # actions [N, A] in [-1, 1]

Each task alone is an ordinary Gymnasium environment: `gymnasium.make("qmp/PointReach-v0", task=3)`.
"""

import difflib
import functools
import os
import random
import subprocess
import sys
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from envs import pointreach
from envs.custom import make_custom
from envs.memory import allocate, keep_freed_memory
from envs.multi_task import MultiTaskEnv, evaluate, format_table

# MuJoCo refuses to be imported if this names a back end that it does not know; `choose_opengl` tells, where it matters.
_MUJOCO_GL = os.environ.pop("MUJOCO_GL", None)
try:
    from envs import kitchen, maze, meta_world, meta_world_cds, reacher, walker
finally:
    if _MUJOCO_GL is not None:
        os.environ["MUJOCO_GL"] = _MUJOCO_GL

__all__ = [
    "TASKS",
    "MultiTaskEnv",
    "allocate",
    "choose_opengl",
    "evaluate",
    "format_table",
    "keep_freed_memory",
    "make_vec",
]


class _Family(NamedTuple):
    entry_point: str
    tasks: tuple[str, ...]
    max_episode_steps: int
    min_rewards: tuple[float, ...]
    kwargs: dict = {}


def _point_reach(tasks: tuple[str, ...]) -> _Family:
    min_rewards = tuple(pointreach.REWARD_OUTSIDE if name == pointreach.SPARSE else -50.0 for name in tasks)
    return _Family("envs.pointreach:PointReach", tasks, 50, min_rewards, {"tasks": tasks})


def _meta_world(tasks: tuple[str, ...]) -> _Family:
    return _Family("envs.meta_world:MetaWorld", tasks, 500, (0.0,) * len(tasks), {"tasks": tasks})


_FAMILIES = {
    "PointReach-v0": _point_reach(pointreach.TASKS),
    "PointReach2-v0": _point_reach(pointreach.TASKS_OF_2),
    "PointReach9-v0": _point_reach(pointreach.TASKS_OF_9),
    "MultistageReacher-v0": _Family("envs.reacher:MultistageReacher", reacher.TASKS, 200, (-5.0,) * 5),
    "Maze-v0": _Family("envs.maze:Maze", maze.TASKS, 600, (-1.0,) * 10),
    "Walker2dMT4-v0": _Family("envs.walker:Walker2dMT4", walker.TASKS, 1000, (0.0,) * 4),
    "KitchenMT10-v0": _Family("envs.kitchen:KitchenMT10", kitchen.TASKS, 140, (-20.0,) * 10),
    "MetaWorldCDS-v0": _Family("envs.meta_world_cds:MetaWorldCDS", meta_world_cds.TASKS, 500, (0.0,) * 4),
    **{f"MetaWorld{name}-v3": _meta_world(tasks) for name, tasks in meta_world.TASK_SETS.items()},
}

TASKS: dict[str, tuple[str, ...]] = {env_id: family.tasks for env_id, family in _FAMILIES.items()}
"""Names of the tasks of every environment, in the order of the sub-environments."""

_VECTORIZATIONS = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}

for _env_id, _family in _FAMILIES.items():
    gym.register(
        f"qmp/{_env_id}",
        entry_point=_family.entry_point,
        max_episode_steps=_family.max_episode_steps,
        kwargs=_family.kwargs,
    )


def make_vec(
    env_id: str,
    seed: int,
    vectorization: str = "sync",
    render_mode: str | None = None,
    evaluation: bool = False,
) -> MultiTaskEnv:
    """Make all tasks of `env_id` as one vector environment; sub-environment i is task i.

    Args:
        env_id: a key of `TASKS`; or "MetaWorld:reach-v3,push-v3", a choice of Meta-World's tasks; or
            "package.module:function", your own (below).
        seed: seeds the first reset, each task with a child of its own.
        vectorization: "sync" (one process) or "async" (a process per task).
        render_mode: None or "rgb_array".
        evaluation: Meta-World's goals for evaluation, instead of those for training.

    Your own function `f(seed, vectorization, render_mode)` returns a `gymnasium.vector.VectorEnv` with a
    sub-environment for each task and `autoreset_mode=AutoresetMode.SAME_STEP`. What is checked here, in two steps of
    each and up to 1,000 of all, and later in every step:

    - Observations and actions are flat Boxes; actions are real and bounded. Numbers are finite in single precision.
    - Every step returns a new observation and a new info, so that those of an episode's last step are not overwritten.
    - `info["success"]`, from 0 to 1, is there in the last step of every episode at least.
      If no task has it, success is NaN.
    - All that is random follows from `reset(seed=...)`; no wrapper keeps statistics, as Gymnasium's Normalize ones do.
    - With `render_mode="rgb_array"`, pictures of one size, uint8 [H, W, 3].

    Its `metadata` may have "tasks", their names; "metrics", names in info besides "success", in every last step too;
    and "attributes": ("acting_policy",), if this attribute, which the tasks must have, is to be set in every step of a
    video.

    Raises:
        gymnasium.error.Error: unknown `env_id`, an environment that breaks this contract, no OpenGL to render with.
    """
    if vectorization not in _VECTORIZATIONS:
        raise gym.error.Error(f"vectorization must be sync or async, not {vectorization!r}")
    random.seed(seed)  # for environments that draw from these when they are made
    np.random.seed(seed % 2**32)
    if env_id.startswith("MetaWorld:"):
        names = tuple(env_id.removeprefix("MetaWorld:").split(","))
        try:
            meta_world.check_names(names)
        except ValueError as error:
            raise gym.error.Error(str(error)) from None
        family = _meta_world(names)
    elif ":" in env_id:
        return make_custom(env_id, seed, vectorization, render_mode, evaluation)
    elif env_id in _FAMILIES:
        family = _FAMILIES[env_id]
    else:
        closest = "".join(f"did you mean {name!r}? " for name in difflib.get_close_matches(env_id, TASKS, n=1))
        raise gym.error.Error(
            f"unknown environment {env_id!r}; {closest}"
            f"allowed: {', '.join(TASKS)}, MetaWorld:TASK,TASK,... and package.module:function"
        )
    if render_mode is not None and "PointReach" not in env_id:
        choose_opengl()
    kwargs = {**family.kwargs, "render_mode": render_mode}
    if evaluation and family.entry_point == "envs.meta_world:MetaWorld":
        kwargs["evaluation"] = True
    name = f"envs:qmp/{env_id if env_id in _FAMILIES else 'MetaWorldMT50-v3'}"  # with other tasks, by `kwargs`
    make = functools.partial(gym.make, name, disable_env_checker=True, **kwargs)
    thunks = [functools.partial(make, task=i) for i in range(len(family.tasks))]
    vec = _VECTORIZATIONS[vectorization](thunks, autoreset_mode=AutoresetMode.SAME_STEP)
    return MultiTaskEnv(vec, family.tasks, seed, family.min_rewards)


@functools.cache
def choose_opengl() -> str:
    """Set MUJOCO_GL to the first OpenGL back end that can draw without a screen, and return it.

    Raises:
        gymnasium.error.Error: there is none.
    """
    # Each is tried in a process of its own, because after a failed one PyOpenGL cannot change over to another.
    code = (
        "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); "
        "mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), mujoco.mjtFontScale.mjFONTSCALE_50)"
    )
    chosen = os.environ.get("MUJOCO_GL")
    for backend in (chosen,) if chosen else ("egl", "osmesa", "glfw"):
        environ = {**os.environ, "MUJOCO_GL": backend}
        environ.pop("PYOPENGL_PLATFORM", None)  # MuJoCo sets it
        if subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            os.environ.pop("PYOPENGL_PLATFORM", None)
            return backend
    tried = f"MUJOCO_GL={chosen}" if chosen else "EGL, OSMesa or GLFW"
    raise gym.error.Error(
        f"rendering needs OpenGL, and {tried} does not work here; on Debian: apt-get install libosmesa6"
    )
