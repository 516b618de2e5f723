"""Multi-task environments: N tasks that share observation and action spaces, as one `gymnasium.vector.VectorEnv`.

    import envs
    vec = envs.make_vec("PointReach-v0", seed=1)    # sub-environment i is task i
    obs, info = vec.reset()                         # obs [N, O] float32
    obs, rewards, terminations, truncations, infos = vec.step(actions)  # actions [N, A] in [-1, 1]

Each task alone is an ordinary Gymnasium environment: `gymnasium.make("qmp/PointReach-v0", task=3)`.
"""

import difflib
import functools
import importlib
import os
import subprocess
import sys
import weakref
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.wrappers.vector import RescaleAction
from metaworld.env_dict import MT10_V3, MT50_V3

from envs.kitchen import TASKS as KITCHEN_TASKS
from envs.maze import TASKS as MAZE_TASKS
from envs.meta_world_cds import TASKS as CDS_TASKS
from envs.pointreach import TASKS as POINTREACH_TASKS
from envs.pointreach import TASKS_OF_2, TASKS_OF_8
from envs.reacher import TASKS as REACHER_TASKS
from envs.walker import TASKS as WALKER_TASKS


class _Family(NamedTuple):
    entry_point: str
    tasks: tuple[str, ...]
    max_episode_steps: int
    min_rewards: tuple[float, ...]
    kwargs: dict = {}
    needs_opengl: bool = True


_FAMILIES = {
    **{
        env_id: _Family(
            "envs.pointreach:PointReach",
            tasks,
            max_episode_steps=50,
            min_rewards=(-25.0,) * (len(tasks) - 1) + (0.0,),
            kwargs={"tasks": tasks},
            needs_opengl=False,
        )
        for env_id, tasks in (
            ("PointReach-v0", POINTREACH_TASKS),
            ("PointReach2-v0", TASKS_OF_2),
            ("PointReach8-v0", TASKS_OF_8),
        )
    },
    "MultistageReacher-v0": _Family("envs.reacher:MultistageReacher", REACHER_TASKS, 200, (-5.0,) * 5),
    "Maze-v0": _Family("envs.maze:Maze", MAZE_TASKS, 600, (-1.0,) * 10),
    "Walker2dMT4-v0": _Family("envs.walker:Walker2dMT4", WALKER_TASKS, 1000, (0.0,) * 4),
    "KitchenMT10-v0": _Family("envs.kitchen:KitchenMT10", KITCHEN_TASKS, 140, (-20.0,) * 10),
    "MetaWorldCDS-v0": _Family("envs.meta_world_cds:MetaWorldCDS", CDS_TASKS, 500, (0.0,) * 4),
    "MetaWorldMT10-v3": _Family("envs.meta_world:MetaWorld", tuple(MT10_V3), 500, (0.0,) * 10, {"benchmark": "MT10"}),
    "MetaWorldMT50-v3": _Family("envs.meta_world:MetaWorld", tuple(MT50_V3), 500, (0.0,) * 50, {"benchmark": "MT50"}),
}

TASKS: dict[str, tuple[str, ...]] = {env_id: family.tasks for env_id, family in _FAMILIES.items()}
"""Names of the tasks of every environment, in the order of the sub-environments."""

MIN_REWARDS: dict[str, tuple[float, ...]] = {env_id: family.min_rewards for env_id, family in _FAMILIES.items()}
"""Reward per step of each task that stands for an unknown one, in data borrowed from other tasks (see qmp_uds.py)."""

_VECTORIZATIONS = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}

for _env_id, _family in _FAMILIES.items():
    gym.register(
        f"qmp/{_env_id}",
        entry_point=_family.entry_point,
        max_episode_steps=_family.max_episode_steps,
        kwargs=_family.kwargs,
    )


class TaskSeeds(VectorWrapper):
    """Seeds every task from its own child of `numpy.random.SeedSequence(seed)`.

    Gymnasium's vector environments seed task i with seed + i, so that task 1 of seed 1 repeats task 0 of seed 2;
    children of a seed sequence never overlap. The first `reset()` without a seed uses the seed given here. A vector
    environment of another kind gets the seed as it is.
    """

    def __init__(self, env: VectorEnv, seed: int):
        super().__init__(env)
        self._first_seed: int | None = seed
        if isinstance(env.unwrapped, AsyncVectorEnv):
            # Left to itself, it ends its processes while they listen, and each complains at length.
            weakref.finalize(self, _close, env)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        """Reset all tasks; `seed` (int >= 0) makes the episodes that follow repeatable. Returns (obs [N, O], infos)."""
        seed = self._first_seed if seed is None else seed
        self._first_seed = None
        if seed is not None and isinstance(self.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            seed = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(self.num_envs)]
        return self.env.reset(seed=seed, options=options)


def _close(env: VectorEnv) -> None:
    """Close an environment, if it is still open, without a sound."""
    if not env.closed:
        try:
            env.close()
        except (OSError, EOFError):  # one of its processes has died
            for process in getattr(env.unwrapped, "processes", ()):
                process.kill()
            env.closed = True


def make_vec(env_id: str, seed: int, vectorization: str = "sync", render_mode: str | None = None) -> VectorEnv:
    """Make all tasks of `env_id` as one vector environment; sub-environment i is task i.

    Args:
        env_id: a key of `TASKS`, or `package.module:function`, a function
            `f(seed, vectorization, render_mode) -> gymnasium.vector.VectorEnv` of your own with SAME_STEP autoreset
            and a new array of observations in every step.
        seed: each task gets its own child of `SeedSequence(seed)`.
        vectorization: "sync" (one process) or "async" (a process per task).
        render_mode: None or "rgb_array".

    Returns:
        A vector environment with float32 observations [N, O], actions [N, A] in [-1, 1], `SAME_STEP` autoreset and
        `infos["success"]`.

    Raises:
        ValueError: unknown `env_id` or `vectorization`, a function of yours that fails or breaks this contract, no
            OpenGL to render with.
    """
    if vectorization not in _VECTORIZATIONS:
        raise ValueError(f"vectorization must be one of {', '.join(_VECTORIZATIONS)}, not '{vectorization}'")
    if ":" in env_id:
        return TaskSeeds(_make_custom(env_id, seed, vectorization, render_mode), seed)
    if env_id not in TASKS:
        close = difflib.get_close_matches(env_id, TASKS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown environment '{env_id}'; did you mean '{close}'? "
            f"Allowed: {', '.join(TASKS)}, or package.module:function"
        )
    if render_mode is not None and _FAMILIES[env_id].needs_opengl:
        choose_opengl()
    thunks = [
        functools.partial(gym.make, f"qmp/{env_id}", task=i, render_mode=render_mode, disable_env_checker=True)
        for i in range(len(TASKS[env_id]))
    ]
    make = _VECTORIZATIONS[vectorization]
    return TaskSeeds(make(thunks, autoreset_mode=AutoresetMode.SAME_STEP), seed)


@functools.cache
def choose_opengl() -> str:
    """Set MUJOCO_GL to the first OpenGL back end that can draw without a screen, and return it.

    Raises:
        ValueError: there is none.
    """
    # Each is tried in a process of its own, because after a failed one PyOpenGL cannot change over to another.
    code = (
        "import mujoco; context = mujoco.GLContext(8, 8); context.make_current(); "
        "mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), mujoco.mjtFontScale.mjFONTSCALE_50)"
    )
    chosen = os.environ.get("MUJOCO_GL")
    for backend in (chosen,) if chosen else ("egl", "osmesa", "glfw"):
        environ = {**os.environ, "MUJOCO_GL": backend}
        if subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return backend
    tried = f"MUJOCO_GL={chosen}" if chosen else "EGL, OSMesa or GLFW"
    raise ValueError(f"rendering needs OpenGL, and {tried} does not work here; on Debian: apt-get install libosmesa6")


def _make_custom(env_id: str, seed: int, vectorization: str, render_mode: str | None) -> VectorEnv:
    """Call the user's function named by `package.module:function`; check what it returns, and a step of it."""
    module, _, function = env_id.partition(":")
    if os.getcwd() not in sys.path:  # the module may lie where the command is given
        sys.path.append(os.getcwd())
    try:
        envs = getattr(importlib.import_module(module), function)(seed, vectorization, render_mode)
    except Exception as error:
        raise ValueError(f"cannot make '{env_id}': {type(error).__name__}: {error}") from error
    if not isinstance(envs, VectorEnv):
        raise ValueError(f"'{env_id}' returned {type(envs).__name__}, not a gymnasium.vector.VectorEnv")
    try:
        return _checked(envs, env_id, seed)
    except ValueError:
        _close(envs)
        raise


def _checked(envs: VectorEnv, env_id: str, seed: int) -> VectorEnv:
    """The user's vector environment, with actions in [-1, 1], if it keeps the contract of `make_vec`."""
    if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise ValueError(f"'{env_id}' must use autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP")
    actions, observations = envs.single_action_space, envs.single_observation_space
    if not (isinstance(actions, gym.spaces.Box) and actions.is_bounded() and len(actions.shape) == 1):
        raise ValueError(f"'{env_id}' needs a bounded, flat Box of actions, but has {actions}")
    if not (isinstance(observations, gym.spaces.Box) and len(observations.shape) == 1):
        raise ValueError(f"'{env_id}' needs a flat Box of observations, but has {observations}")
    if not (np.all(actions.low == -1) and np.all(actions.high == 1)):
        envs = RescaleAction(envs, -1.0, 1.0)
    try:
        first_obs, _ = envs.reset(seed=seed)
        obs, *_, infos = envs.step(np.zeros((envs.num_envs, *actions.shape), np.float32))
        if envs.render_mode is not None:
            envs.render()
    except Exception as error:
        raise ValueError(f"the first step of '{env_id}' fails: {type(error).__name__}: {error}") from error
    if np.shares_memory(first_obs, obs):
        raise ValueError(f"'{env_id}' returns one array of observations again and again; it must be new in every step")
    for name in ("success", *envs.metadata.get("metrics", ())):
        told = [part.get(f"_{name}", name in part) for part in (infos, infos.get("final_info", {}))]
        if not np.all(np.logical_or(*told)):
            raise ValueError(f"info['{name}'] is missing from the steps of '{env_id}'")
    return envs
