"""What training and evaluation see of the environments: N tasks side by side, checked, with statistics of episodes."""

import contextlib
import math
import random
import warnings
import weakref
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper
from PIL import Image, ImageColor, ImageDraw

from envs.pointreach import COLORS

MAX_EVALUATION_STEPS = 1_000_000
"""Turns after which `evaluate` gives up waiting for episodes to end."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


class MultiTaskEnv(VectorWrapper):
    """N tasks side by side, as `envs.make_vec` returns them.

    - `tasks` are their names, `metrics` the names of the statistics of an episode, `episode_lengths` [N] the steps of
      the current episodes; `min_rewards` [N] are the lowest rewards of a step, None if unknown; `has_success` is
      whether any task has reported it so far.
    - Each task is seeded with its own child of `numpy.random.SeedSequence(seed)`. (Gymnasium seeds task i with
      seed + i, so that task 1 of seed 1 repeats task 0 of seed 2.) Python's and NumPy's global generators are seeded
      too, and in the processes of an `AsyncVectorEnv` PyTorch's, which here is that of training. `first_seed` is that
      of the first reset without a seed.
    - Actions [N, A] in [-1, 1] are scaled to the bounds of the action space; what lies outside is clipped.
    - `infos["real_next_obs"]` [N, O] are the observations that the actions led to, also where an episode has ended and
      the observation returned is already the first of the next one; `infos["succeeded"]` [N] is whether success is 1
      there.
    - Where episodes end, `infos["episode"]` holds `metrics`, each [N]. Of success and of the environment's own metrics
      the highest value in the episode counts, so that success means success at any step, as in Meta-World. Success is
      NaN if the environment does not report it.

    Raises:
        gymnasium.error.Error: the environment breaks the contract of `envs.make_vec`.
        FloatingPointError: a number is not finite in single precision; the message names the task.
        ChildProcessError: the process of an environment has died.
        RuntimeError: the environment's own code raised one of these (see `as_runtime_errors`).
    """

    def __init__(self, env: VectorEnv, tasks: Sequence[str], seed: int, min_rewards: Sequence[float] | None = None):
        super().__init__(env)
        self.tasks, self.min_rewards, self.first_seed = tuple(tasks), min_rewards, seed
        self._info_names = ("success", *env.metadata.get("metrics", ()))
        self.metrics = ("success_rate", "episodic_return", "episodic_length", *self._info_names[1:])
        self.has_success, self._missing = False, {}  # _missing: names missing at the end of an episode, and its task
        space = env.single_action_space
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._scaled = bool(np.any(self._low != -1) or np.any(self._high != 1))
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, space.shape, space.dtype)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        # At Python's exit only processes need to be closed; a viewer cannot be, because OpenGL is gone by then.
        finalizer = weakref.finalize(self, _close, env)
        finalizer.atexit = isinstance(self.unwrapped, AsyncVectorEnv)

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict | None = None):
        """Start new episodes. Returns (obs [N, O], infos).

        `seed` makes all that follows repeatable: an int >= 0, or several that together are one seed for all tasks.
        """
        seed, self.first_seed = self.first_seed if seed is None else seed, None
        if seed is not None:
            children = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(self.num_envs)]
            _seed_generators(children[0])
            seed = children if isinstance(self.unwrapped, SyncVectorEnv | AsyncVectorEnv) else children[0]
        with self._explain_errors():
            if seed is not None and isinstance(self.unwrapped, AsyncVectorEnv):
                self.unwrapped.set_attr("_seeds_of_generators", [_SeedWhenUnpickled(child) for child in seed])
            obs, infos = self.env.reset(seed=seed, options=options)
        self.episode_lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._returns = np.zeros(self.num_envs)
        self._highest = np.full((len(self._info_names), self.num_envs), -np.inf)
        return self._observations(obs), infos

    def step(self, actions: np.ndarray):
        """One step of every task: actions [N, A] -> obs [N, O], rewards, terminations, truncations [N], infos."""
        actions = self._numbers("action", actions, *self._low.shape)
        actions = np.minimum(np.maximum(actions, -1), 1)
        if self._scaled:
            actions = self._low * (0.5 - actions / 2) + self._high * (0.5 + actions / 2)  # never infinite
            actions = np.minimum(np.maximum(actions, self._low), self._high)
        with self._explain_errors():
            raw_obs, rewards, *ends, infos = self.env.step(actions.astype(self.single_action_space.dtype))
        obs, rewards = self._observations(raw_obs), self._numbers("reward", rewards)
        terminations, truncations = map(self._booleans, ("termination", "truncation"), ends)
        dones = terminations | truncations
        ended = np.flatnonzero(dones)
        infos["real_next_obs"] = self._last_observations(raw_obs, ended, infos) if len(ended) else obs

        self.episode_lengths += 1
        self._returns += rewards
        reported = np.array([self._values(name, dones, infos) for name in self._info_names])  # [names, N]
        np.maximum(self._highest, reported, out=self._highest)
        self.has_success |= bool((reported[0] > -np.inf).any())
        infos["succeeded"] = reported[0] == 1
        if len(ended):
            for name, values in zip(self._info_names, reported, strict=True):
                for i in ended[np.isinf(values[ended])]:
                    self._missing.setdefault(name, self.tasks[i])
            success, *others = np.where(np.isinf(self._highest), np.nan, self._highest)
            for i in np.flatnonzero((success < 0) | (success > 1)):
                raise gym.error.Error(f"info['success'] of task {self.tasks[i]} is {success[i]:g}, not from 0 to 1")
            values = success, self._returns.copy(), self.episode_lengths.copy(), *others
            infos["episode"] = dict(zip(self.metrics, values, strict=True))
            self._highest[:, dones], self._returns[dones], self.episode_lengths[dones] = -np.inf, 0, 0
        for name, task in self._missing.items():
            if name != "success" or self.has_success:
                raise gym.error.Error(f"an episode of task {task} ended without info[{name!r}]")
        return obs, rewards, terminations, truncations, infos

    def state_dict(self) -> dict:
        """What a checkpoint must have been made with."""
        return {"tasks": self.tasks, "metrics": self.metrics}

    def load_state_dict(self, state: dict) -> None:
        """Raise gymnasium.error.Error unless tasks and metrics are those of a checkpoint."""
        for name, value in self.state_dict().items():
            if value != tuple(state[name]):
                raise gym.error.Error(f"{name} of this run are {', '.join(state[name])}, not {', '.join(value)}")

    def render(self):
        """Pictures of all tasks, uint8 [H, W, 3] each, with render_mode "rgb_array"."""
        with self._explain_errors():
            return self.env.render()

    @contextlib.contextmanager
    def _explain_errors(self):
        """As `as_runtime_errors`, and say what it means that the pipe to the process of an environment has closed."""
        try:
            with as_runtime_errors():
                yield
        except RuntimeError as error:
            pipes = getattr(self.unwrapped, "parent_pipes", (None,))  # None where the process has sent an error
            if isinstance(error.__cause__, EOFError | ConnectionError) and None not in pipes:
                raise ChildProcessError("the process of an environment has died") from error
            raise

    def _numbers(self, name: str, values, *shape: int, among: np.ndarray | None = None) -> np.ndarray:
        """`values` as a new array [N, *shape] of finite numbers; only those of the tasks `among` [N], others are 0."""
        try:
            array = np.asarray(values)
            if among is not None and array.shape == among.shape:
                array = np.where(among, array, 0)
            array = np.asarray(array.tolist()) if array.dtype == object else array
        except (TypeError, ValueError):  # text, arrays of different shapes
            array = np.asarray(None)
        if array.dtype.kind not in "biuf":
            raise gym.error.Error(
                f"each {name} of the environments must be a number, not {values!r}".replace("\n", " ")
            )
        if array.shape != (self.num_envs, *shape):
            raise gym.error.Error(f"{name}s of all tasks have shape {array.shape}, not {self.num_envs, *shape}")
        numbers = array.astype(np.float64)
        if not (np.abs(numbers) <= FLOAT32_MAX).all():  # replay is in single precision
            finite = (np.abs(numbers) <= FLOAT32_MAX).reshape(self.num_envs, -1).all(1)
            raise FloatingPointError(f"a non-finite {name} in task {self.tasks[finite.argmin()]}")
        return numbers

    def _observations(self, obs, name: str = "observation") -> np.ndarray:
        """`obs` as a new array [N, O], float32."""
        return self._numbers(name, obs, *self.single_observation_space.shape).astype(np.float32)

    def _booleans(self, name: str, values) -> np.ndarray:
        """`values` as a new array [N] of booleans."""
        array = np.array(values)
        if array.dtype != bool or array.shape != (self.num_envs,):
            array = self._numbers(name, values)
            if not ((array == 0) | (array == 1)).all():
                raise gym.error.Error(f"each {name} of the environments must be a boolean, not {values}")
        return array.astype(bool)

    def _last_observations(self, obs, ended: np.ndarray, infos: dict) -> np.ndarray:
        """`obs` as float32 [N, O], with infos["final_obs"] for the tasks `ended`."""
        final, obs = infos.get("final_obs"), list(obs)
        if not hasattr(final, "__len__") or len(final) != self.num_envs:
            raise gym.error.Error("where an episode ends, infos['final_obs'] must hold the last observation")
        for i in ended:
            if np.shares_memory(obs[i], final[i]):
                raise gym.error.Error(f"task {self.tasks[i]} starts an episode in the array of its last observation")
            obs[i] = final[i]
        return self._observations(obs, "last observation")

    def _values(self, name: str, dones: np.ndarray, infos: dict) -> np.ndarray:
        """infos[name] of every task [N], of the last step where an episode ended; -inf where it is missing."""
        values = np.full(self.num_envs, -np.inf)
        parts = [(infos, ~dones)]
        if dones.any():
            parts.append((infos.get("final_info", infos), dones))
        for part, tasks in parts:
            if not isinstance(part, dict):
                raise gym.error.Error(f"infos['final_info'] must be a dict, not {type(part).__name__}")
            if name in part:
                has_value = tasks & np.asarray(part.get(f"_{name}", True), dtype=bool)
                values[has_value] = self._numbers(f"info[{name!r}]", part[name], among=has_value)[has_value]
        return values


@contextlib.contextmanager
def as_runtime_errors():
    """Raise errors of an environment's own code as RuntimeErrors, so that the scripts show their traceback."""
    try:
        yield
    except (OSError, EOFError, FloatingPointError, gym.error.Error) as error:
        raise RuntimeError(f"the environment raised {type(error).__name__}: {error}") from error


def _seed_generators(seed: int) -> None:
    """Seed Python's and NumPy's global generators."""
    random.seed(seed)
    np.random.seed(seed)


def _seed_worker(seed: int) -> None:
    """Seed all global generators of a process that has an environment to itself."""
    _seed_generators(seed)
    torch.manual_seed(seed)


class _SeedWhenUnpickled:
    """Pickled as a call of `_seed_worker`: the process that it is sent to seeds its global generators."""

    def __init__(self, seed: int):
        self.seed = seed

    def __reduce__(self):
        return _seed_worker, (self.seed,)


def _close(env: VectorEnv) -> None:
    """Close an environment, if it is still open, quietly."""
    if not env.closed:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a step is pending
                env.close()
        except (OSError, EOFError):  # one of its processes has died
            for process in getattr(env.unwrapped, "processes", ()):
                process.kill()
            env.closed = True


@contextlib.contextmanager
def keep_generators():
    """What happens inside leaves the global random generators of Python, NumPy and PyTorch as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@keep_generators()
def evaluate(
    envs: MultiTaskEnv, actor, episodes: int, seed: int | Sequence[int], video: Path | None = None, stop: Sequence = ()
) -> pd.DataFrame | None:
    """Run `episodes` episodes of every task; a row per task: its name, means of `envs.metrics`, who acted.

    `actor.act(obs [N, O], episode_lengths [N])` gives the actions [N, A], and `actor.policies` [N] the policies that
    gave them; column acted/POLICY is the share of the steps of these episodes in which a policy did. The first episode
    of every task goes into the file `video`, if given. Returns None as soon as `stop` is not empty. Global random
    generators are left as they were, so that training goes on as if there had been no evaluation.

    Raises:
        gymnasium.error.Error: an episode does not end.
    """
    obs, _ = envs.reset(seed=seed)
    N = envs.num_envs
    statistics, counts = [[] for _ in envs.tasks], np.zeros((N, N))  # of finished episodes; steps by policy [N, P]
    first, finished = np.ones(N, dtype=bool), np.zeros(N, dtype=np.int64)  # in its first episode; episodes [N]
    with _Video(video, envs) if video else contextlib.nullcontext() as recording:
        for _ in range(MAX_EVALUATION_STEPS):
            actions = actor.act(obs, envs.episode_lengths)
            policies = np.asarray(actor.policies.cpu())
            running = np.flatnonzero(finished < episodes)
            counts[running, policies[running]] += 1
            if recording and first.any():
                recording.add(policies, first)
            obs, _, terminations, truncations, infos = envs.step(actions)
            dones = terminations | truncations
            for i in running[dones[running]]:
                statistics[i].append([infos["episode"][name][i] for name in envs.metrics])
            first, finished = first & ~dones, finished + dones
            if (finished >= episodes).all():
                rows = pd.DataFrame([np.mean(rows, axis=0) for rows in statistics], columns=list(envs.metrics))
                rows[[f"acted/{task}" for task in envs.tasks]] = counts / counts.sum(1, keepdims=True)
                rows.insert(0, "task", envs.tasks)
                return rows
            if stop:
                return None
    raise gym.error.Error(
        f"in {MAX_EVALUATION_STEPS:,} steps of evaluation, task {envs.tasks[finished.argmin()]} ended "
        f"{finished.min()} of {episodes} episodes; give it a time limit (gymnasium.wrappers.TimeLimit)"
    )


def format_table(rows: pd.DataFrame) -> str:
    """Task, success, return and share of the task's own policy, from rows of `evaluate`, with their means last."""
    table = rows[["task", "success_rate", "episodic_return"]].assign(
        own_policy=rows.filter(regex="^acted/").to_numpy().diagonal()
    )
    table.loc[len(table)] = ["mean", *table.iloc[:, 1:].mean()]
    table.columns = ["task", "success", "return", "own policy"]
    return table.to_string(index=False, float_format="%.2f", na_rep="-")


class _Video:
    """A file of tiles, one for each task: its first episode, with the names of the task and of the policy that acts.

    The border has the policy's colour; those of PointReach are the ones in which it draws.
    """

    def __init__(self, path: Path, envs: MultiTaskEnv):
        self.path, self.envs, self.tiles, self.writer = path, envs, [None] * envs.num_envs, None
        hues = [f"hsv({360 * i // envs.num_envs}, 80%, {60 + i % 2 * 40}%)" for i in range(envs.num_envs)]
        self.colors = [COLORS.get(task, ImageColor.getrgb(hue)) for task, hue in zip(envs.tasks, hues, strict=True)]

    def __enter__(self):
        return self

    def add(self, policies: Sequence[int], running: Sequence[bool]) -> None:
        """Append a frame, with new pictures of the tasks [N] that are `running`."""
        tasks, metadata = self.envs.tasks, self.envs.metadata
        if "acting_policy" in metadata.get("attributes", ()):
            self.envs.unwrapped.set_attr("acting_policy", [int(policy) for policy in policies])
        for i, picture in enumerate(self.envs.render()):
            if running[i]:
                height, width, _ = picture.shape
                tile = Image.new("RGB", (max(width, 220) + 8, height + 42))  # wide enough for the names
                tile.paste(Image.fromarray(picture), (4, 38))
                pen, label = ImageDraw.Draw(tile), f"{tasks[i]}\n{tasks[policies[i]]} acts"
                pen.text((8, 4), label, "white", font_size=13, spacing=1)
                pen.rectangle((0, 0, tile.width - 1, tile.height - 1), outline=self.colors[policies[i]], width=4)
                self.tiles[i] = np.asarray(tile)
        columns = math.ceil(math.sqrt(len(tasks)))
        empty = [np.zeros_like(self.tiles[0])] * (-len(tasks) % columns)
        rows = np.array(self.tiles + empty).reshape(-1, columns, *self.tiles[0].shape)
        frame = np.concatenate(np.concatenate(rows, axis=1), axis=1)
        frame = frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]  # the codec needs even sizes
        if self.writer is None:
            from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter  # slow to import

            self.path.parent.mkdir(parents=True, exist_ok=True)
            fps = metadata.get("render_fps", 30)
            self.writer = FFMPEG_VideoWriter(str(self.path), frame.shape[1::-1], fps)
        self.writer.write_frame(frame)

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()
