"""A user's own environments: made by a function of theirs, and checked before anything is run with them."""

import importlib
import os
import sys

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from envs.multi_task import MultiTaskEnv

WITH_STATISTICS = (
    wrappers.NormalizeObservation,
    wrappers.NormalizeReward,
    wrappers.vector.NormalizeObservation,
    wrappers.vector.NormalizeReward,
)


def make_custom(env_id: str, seed: int, vectorization: str, render_mode: str | None) -> MultiTaskEnv:
    """What the function `package.module:function` returns, if it keeps the contract of `envs.make_vec`.

    Raises:
        gymnasium.error.Error: there is no such function, or it breaks the contract. Its own errors pass.
    """
    name, _, function = env_id.partition(":")
    if os.getcwd() not in sys.path:  # the module may lie where the command is given
        sys.path.append(os.getcwd())
    try:
        make = getattr(importlib.import_module(name), function, None)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # it is the user's module that lacks another one
        raise gym.error.Error(f"{env_id}: there is no module {error.name!r}") from None
    if not callable(make):
        raise gym.error.Error(f"{env_id}: the module has no function {function!r}")
    vec = make(seed, vectorization, render_mode)
    if not isinstance(vec, VectorEnv):
        raise gym.error.Error(f"{env_id} returned {type(vec).__name__}, not a gymnasium.vector.VectorEnv")
    if render_mode is not None and vec.render_mode != render_mode:
        raise gym.error.Error(f"{env_id} cannot render an {render_mode}")
    tasks = [str(task) for task in vec.metadata.get("tasks", [f"task-{i}" for i in range(vec.num_envs)])]
    if len(set(tasks)) != vec.num_envs or len(tasks) != vec.num_envs:
        raise gym.error.Error(f"metadata['tasks'] must be {vec.num_envs} different names, not {tasks}")
    check_spaces(vec)
    check_tasks(vec, tasks)
    vec = MultiTaskEnv(vec, tasks, seed)
    check_episodes(vec)
    return vec


def check_spaces(vec: VectorEnv) -> None:
    """Refuse kinds of autoreset and of spaces that the scripts cannot use."""
    if vec.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise gym.error.Error("the environments must use autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP")
    actions = vec.single_action_space
    for name, space in (("observations", vec.single_observation_space), ("actions", actions)):
        if not (isinstance(space, gym.spaces.Box) and len(space.shape) == 1):
            raise gym.error.Error(f"the environments need a flat Box of {name}, but have {space}")
    if not (actions.is_bounded() and np.issubdtype(actions.dtype, np.floating)):
        raise gym.error.Error(f"the environments need bounded, real actions, but have {actions}")


def check_tasks(vec: VectorEnv, tasks: list[str]) -> None:
    """Refuse sub-environments whose numbers would change on their way through the vector environment."""
    layers = unwrapped(vec)
    separate = isinstance(layers[-1], AsyncVectorEnv)  # they live in other processes, so that others are made here
    envs = [make() for make in layers[-1].env_fns] if separate else getattr(layers[-1], "envs", [])
    kinds = {name: {} for name in ("success", *vec.metadata.get("metrics", ()))}
    for task, env in zip(tasks, envs, strict=bool(envs)):
        layers += unwrapped(env)
        obs, _ = env.reset(seed=0)
        for _ in range(2):
            before, (obs, *_, info) = obs, env.step(env.action_space.sample())
            if np.shares_memory(before, obs):
                raise gym.error.Error(f"task {task} returns one array of observations again and again; return a copy")
        for name in kinds.keys() & info.keys():
            kinds[name][np.asarray(info[name]).dtype.kind] = task
        if separate:
            env.close()
    for name, examples in kinds.items():
        if len(examples) > 1:  # Gymnasium converts all to the type of the first
            raise gym.error.Error(f"info[{name!r}] has different types in the tasks {', '.join(examples.values())}")
    for layer in layers:
        if isinstance(layer, WITH_STATISTICS):
            raise gym.error.Error(
                f"{type(layer).__name__} is not supported: neither checkpoints nor evaluations know its statistics"
            )


def check_episodes(vec: MultiTaskEnv) -> None:
    """Refuse what breaks the contract in the first episode of each task, up to step 1,000."""
    vec.reset(seed=0)
    rng, ended = np.random.default_rng(0), np.zeros(vec.num_envs, dtype=bool)
    for _ in range(1000):
        _, _, terminations, truncations, _ = vec.step(rng.uniform(-1, 1, vec.action_space.shape))
        ended |= terminations | truncations
        if ended.all():
            break
    if vec.render_mode is not None:
        vec.render()


def unwrapped(env: gym.Env | VectorEnv) -> list:
    """`env` and all that it wraps, from the outside in."""
    layers = [env]
    while hasattr(layers[-1], "env"):
        layers.append(layers[-1].env)
    return layers
