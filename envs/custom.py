"""A user's own environments: made by a function of theirs, and checked before anything is run with them."""

import importlib
import os
import re
import sys
import warnings
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

from envs.multi_task import MultiTaskEnv, traced

PICTURE = r"uint8 \[\d+, \d+, 3\]"
WITH_STATISTICS = (
    wrappers.NormalizeObservation,
    wrappers.NormalizeReward,
    wrappers.vector.NormalizeReward,  # its counterpart for observations refuses SAME_STEP itself
)


def make_custom(env_id: str, seed: int, vectorization: str, render_mode: str | None) -> MultiTaskEnv:
    """What the function `package.module:function` returns, if it keeps the contract of `envs.make_vec`.

    Raises:
        gymnasium.error.Error: there is no such function, or it breaks the contract.
        RuntimeError, or any other: the function's own error.
    """
    make = find_function(env_id)
    with traced():
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
    check_sub_environments(vec, tasks, metrics)
    vec = MultiTaskEnv(vec, tasks, seed)
    check_episodes(vec)
    if not vec.tells_success:
        warnings.warn(f"{env_id} has no info['success']: judge its tasks by their returns", stacklevel=1)
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
        with traced():
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


def check_sub_environments(vec: VectorEnv, tasks: tuple[str, ...], metrics: tuple[str, ...]) -> None:
    """Refuse what would change numbers on their way through Gymnasium's vector environments."""
    layers, types = unwrapped(vec), {name: {} for name in ("success", *metrics)}
    for task, env in zip(tasks, sub_environments(vec), strict=False):
        layers += unwrapped(env)
        for info in check_steps(env, task):
            for name in types.keys() & info.keys():
                types[name].setdefault(np.asarray(info[name]).dtype.kind, (type(info[name]).__name__, task))
    for name, examples in types.items():
        if len(examples) > 1:  # Gymnasium converts all to the type of the first
            found = ", ".join(f"{kind} in {task}" for kind, task in examples.values())
            raise gym.error.Error(f"info[{name!r}] must have one type in all tasks, but is {found}")
    for layer in layers:
        if isinstance(layer, WITH_STATISTICS):
            raise gym.error.Error(
                f"{type(layer).__name__} is not supported: neither checkpoints nor evaluations know its statistics"
            )


def sub_environments(vec: VectorEnv) -> Iterator[gym.Env]:
    """The environments in `vec`, or others like them if they live in processes of their own."""
    base = vec.unwrapped
    if isinstance(base, SyncVectorEnv):
        yield from base.envs
    elif isinstance(base, AsyncVectorEnv):
        for make in base.env_fns:
            with traced():
                env = make()
            yield env
            env.close()


def check_steps(env: gym.Env, task: str) -> list[dict]:
    """The infos of a reset, two steps, and another reset."""
    env.action_space.seed(0)
    with traced():
        obs, info = env.reset(seed=0)
    infos, ends, space = [info], (), env.observation_space
    for last in (False, False, True):
        before, copy = obs, np.array(obs)
        with traced():
            if last or any(ends):
                (obs, info), ends = env.reset(), ()
            else:
                obs, _, *ends, info = env.step(env.action_space.sample())
        if obs is before or np.shares_memory(before, obs) or np.asarray(before).tobytes() != copy.tobytes():
            raise gym.error.Error(f"task {task} changes the observation that it has returned; return a copy")
        if info and info is infos[-1]:
            raise gym.error.Error(f"task {task} returns one info again and again; return a new dict")
        if not all(end in (False, True) for end in ends):
            raise gym.error.Error(f"terminated and truncated must be booleans, but are {ends} in task {task}")
        dtype = np.asarray(obs).dtype
        if isinstance(space, gym.spaces.Box) and not np.can_cast(dtype, space.dtype, "same_kind"):
            raise gym.error.Error(f"observations of task {task} are {dtype}, but their space is {space.dtype}")
        infos.append(info)
    return infos


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
        pictures = vec.render()
        pictures = [np.asarray(picture) for picture in (() if pictures is None else pictures)]
        kinds = {f"{picture.dtype} {list(picture.shape)}" for picture in pictures}
        if len(pictures) != vec.num_envs or len(kinds) > 1 or not re.fullmatch(PICTURE, *kinds):
            found = f"{len(pictures)} of {', '.join(kinds) or 'nothing'}"
            raise gym.error.Error(f"render must return {vec.num_envs} pictures, uint8 [H, W, 3], not {found}")


def unwrapped(env: gym.Env | VectorEnv) -> list:
    """`env` and all that it wraps, from the outside in."""
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper | VectorWrapper):
        layers.append(layers[-1].env)
    return layers
