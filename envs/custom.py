"""A user's own environments: made by a function of theirs, and checked before anything is run with them."""

import functools
import importlib
import os
import re
import sys
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from envs.multi_task import MultiTaskEnv, as_runtime_errors

PICTURE = r"uint8 \[\d+, \d+, 3\]"
WITH_STATISTICS = (
    wrappers.NormalizeObservation,
    wrappers.NormalizeReward,
    wrappers.vector.NormalizeReward,  # its counterpart for observations refuses SAME_STEP itself
)


def make_custom(env_id: str, seed: int, vectorization: str, render_mode: str | None, evaluation: bool) -> MultiTaskEnv:
    """What the function `package.module:function` returns, if it keeps the contract of `envs.make_vec`.

    Raises:
        gymnasium.error.Error: there is no such function, or it breaks the contract.
        RuntimeError, or any other: the function's own error.
    """
    make = find_function(env_id)
    with as_runtime_errors():
        vec = make(seed, vectorization, render_mode)
    if not isinstance(vec, VectorEnv):
        raise gym.error.Error(f"{env_id} returned {type(vec).__name__}, not a gymnasium.vector.VectorEnv")
    if render_mode is not None and vec.render_mode != render_mode:
        raise gym.error.Error(f"{env_id} cannot render: its render_mode is {vec.render_mode}, not {render_mode!r}")
    check_spaces(vec)
    default_names = [f"task-{i}" for i in range(vec.num_envs)]
    tasks = check_names("tasks", vec.metadata.get("tasks", default_names), vec.num_envs)
    taken = ("global_step", "acting", "task", "success", "success_rate", "episodic_return", "episodic_length")
    metrics = check_names("metrics", vec.metadata.get("metrics", ()), taken=taken)
    check_sub_environments(vec, tasks)
    keep_infos(vec, ("success", *metrics))
    vec = MultiTaskEnv(vec, tasks, seed)
    ended = check_episodes(vec)
    if not evaluation:  # so that it is said once for each run
        if not vec.has_success:
            print(f"{env_id} has no info['success']: judge its tasks by their returns", file=sys.stderr)
        for i in np.flatnonzero(~ended):
            print(f"task {tasks[i]} ended no episode in 1,000 steps: does it have a time limit?", file=sys.stderr)
    vec.first_seed = seed  # the check has used it up
    return vec


def find_function(env_id: str):
    """The function `package.module:function`; the module may lie in the current folder."""
    name, _, function = env_id.partition(":")
    if "" in name.split("."):
        raise gym.error.Error(f"{env_id}: {name!r} is not the name of a module")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with as_runtime_errors():
            make = getattr(importlib.import_module(name), function, None)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # it is the user's module that lacks another one
        raise gym.error.Error(f"{env_id}: there is no module {error.name!r}") from None
    if not callable(make):
        raise gym.error.Error(f"{env_id}: the module has no function {function!r}")
    return make


def check_names(key: str, names, count: int | None = None, taken: tuple[str, ...] = ()) -> tuple[str, ...]:
    """`names`, from the metadata, if they are different, not `taken`, printable, and `count` in number."""
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name.strip() for name in names):
        raise gym.error.Error(f"metadata[{key!r}] must be a list of names, not {names!r}")
    if not all(name.isprintable() and not name.startswith("acted/") for name in names):
        raise gym.error.Error(f"metadata[{key!r}] must be printable and not begin with acted/, but is {names}")
    if len({*names, *taken}) < len(names) + len(taken) or count not in (None, len(names)):
        other = f", other than {', '.join(taken)}" if taken else ""
        raise gym.error.Error(f"metadata[{key!r}] must be {count or 'all'} different names{other}, not {names}")
    return tuple(names)


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


def check_sub_environments(vec: VectorEnv, tasks: tuple[str, ...]) -> None:
    """Refuse what would change numbers on their way through Gymnasium's vector environments."""
    layers = unwrapped(vec)
    for task, env in zip(tasks, sub_environments(vec), strict=False):
        layers += unwrapped(env)
        check_steps(env, task)
    for layer in layers:
        if isinstance(layer, WITH_STATISTICS):
            raise gym.error.Error(
                f"{type(layer).__name__} is not supported: neither checkpoints nor evaluations know its statistics"
            )


def keep_infos(vec: VectorEnv, names: tuple[str, ...]) -> None:
    """Have Gymnasium's vector environments join infos `names` as floats.

    They would convert them to the type of the first task's: 0 in one and 0.7 in another task would be 0 in both.
    """
    base = vec.unwrapped
    if isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        base._add_info = functools.partial(_add_info, base, names)


def _add_info(base: VectorEnv, names: tuple[str, ...], infos: dict, info: dict, i: int) -> dict:
    """Add the info of task `i` to `infos`, as Gymnasium's method of this name does, with floats."""
    values = {name: np.asarray(info[name]) for name in names if name in info}
    floats = {name: float(x) for name, x in values.items() if x.shape == () and x.dtype.kind in "biuf"}
    return type(base)._add_info(base, infos, {**info, **floats}, i)


def sub_environments(vec: VectorEnv) -> Iterator[gym.Env]:
    """The environments in `vec`, or others like them if they live in processes of their own."""
    base = vec.unwrapped
    if isinstance(base, SyncVectorEnv):
        yield from base.envs
    elif isinstance(base, AsyncVectorEnv):
        for make in base.env_fns:
            with as_runtime_errors():
                env = make()
            yield env
            env.close()


def check_steps(env: gym.Env, task: str) -> None:
    """Refuse what breaks the contract in a reset, two steps, and another reset."""
    env.action_space.seed(0)
    space, obs, info, ends = env.observation_space, None, None, ()
    for number in range(4):
        before, copy, last_info = obs, np.array(obs), info
        step = number in (1, 2) and not any(ends)
        with as_runtime_errors():
            returned = env.step(env.action_space.sample()) if step else env.reset(seed=None if number else 0)
        names = ("observation", "reward", "terminated", "truncated", "info") if step else ("observation", "info")
        if not (isinstance(returned, tuple | list) and len(returned) == len(names) and isinstance(returned[-1], dict)):
            call = "step" if step else "reset"
            raise gym.error.Error(f"{call} of task {task} must return {', '.join(names)}")
        obs, *numbers, info = returned
        ends = numbers[1:]
        if number and (
            obs is before or np.shares_memory(before, obs) or np.asarray(before).tobytes() != copy.tobytes()
        ):
            raise gym.error.Error(f"task {task} changes the observation that it has returned; return a copy")
        if info and info is last_info:
            raise gym.error.Error(f"task {task} returns one info again and again; return a new dict")
        for name, value in zip(names[1:-1], numbers, strict=True):
            is_number = not np.shape(value) and np.asarray(value).dtype.kind in "biuf"
            if not is_number or (name != "reward" and value not in (0, 1)):
                kind = "number" if name == "reward" else "boolean"
                raise gym.error.Error(f"{name} must be a {kind}, but is {value!r} in task {task}")
        array = np.asarray(obs)
        if isinstance(space, gym.spaces.Box) and (
            array.shape != space.shape or not np.can_cast(array.dtype, space.dtype, "same_kind")
        ):
            found, wanted = f"{array.dtype} {list(array.shape)}", f"{space.dtype} {list(space.shape)}"
            raise gym.error.Error(f"an observation of task {task} is {found}, but its space is {wanted}")


def check_episodes(vec: MultiTaskEnv) -> np.ndarray:
    """Refuse what breaks the contract in the first episode of each task, up to step 1,000; returns which ended, [N]."""
    vec.reset(seed=0)
    rng, ended = np.random.default_rng(0), np.zeros(vec.num_envs, dtype=bool)
    for _ in range(1000):
        _, _, terminations, truncations, _ = vec.step(rng.uniform(-1, 1, vec.action_space.shape))
        ended |= terminations | truncations
        if ended.all():
            break
    if vec.render_mode is not None:
        pictures = vec.render()
        pictures = [np.asarray(picture) for picture in (() if pictures is None else pictures)]
        kinds = {f"{picture.dtype} {list(picture.shape)}" for picture in pictures}
        if len(pictures) != vec.num_envs or len(kinds) > 1 or not re.fullmatch(PICTURE, *kinds):
            found = f"{len(pictures)} of {', '.join(kinds) or 'nothing'}"
            raise gym.error.Error(f"render must return {vec.num_envs} pictures, uint8 [H, W, 3], not {found}")
    return ended


def unwrapped(env: gym.Env | VectorEnv) -> list:
    """`env` and all that it wraps, from the outside in."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper | VectorWrapper):
        layers.append(layers[-1].env)
    return layers
