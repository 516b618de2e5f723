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
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from PIL import Image, ImageDraw

MAX_EVALUATION_STEPS = 1_000_000


class MultiTaskEnv(VectorWrapper):
    """N tasks side by side, as `envs.make_vec` returns them.

    - `tasks` are their names, `metrics` the names of the statistics of an episode, `episode_lengths` [N] the steps of
      the current episodes; `min_rewards` [N] are the lowest rewards of a step, None if unknown.
    - Each task is seeded with its own child of `numpy.random.SeedSequence(seed)`. (Gymnasium seeds task i with
      seed + i, so that task 1 of seed 1 repeats task 0 of seed 2.) Python's and NumPy's global generators are seeded
      too, in this process.
    - Actions [N, A] in [-1, 1] are scaled to the bounds of the action space.
    - `infos["real_next_obs"]` [N, O] are the observations that the actions led to, also where an episode has ended and
      the observation returned is already the first of the next one.
    - Where episodes end, `infos["episode"]` holds `metrics`, each [N]. Of success and of the environment's own metrics
      the highest value in the episode counts, so that success means success at any step, as in Meta-World. Success is
      NaN if the environment does not tell it.

    Raises:
        gymnasium.error.Error: the environment breaks the contract of `envs.make_vec`.
        FloatingPointError: a number is not finite in single precision; the message names the task.
        ChildProcessError: the process of an environment has died.
    """

    def __init__(self, env: VectorEnv, tasks: Sequence[str], seed: int, min_rewards: Sequence[float] | None = None):
        super().__init__(env)
        self.tasks, self.min_rewards, self._first_seed = tuple(tasks), min_rewards, seed
        self._told = ("success", *env.metadata.get("metrics", ()))
        self.metrics = ("success_rate", "episodic_return", "episodic_length", *self._told[1:])
        self.tells_success = False
        self._bounds = env.single_action_space
        if np.any(self._bounds.low != -1) or np.any(self._bounds.high != 1):
            self.single_action_space = gym.spaces.Box(-1.0, 1.0, self._bounds.shape, self._bounds.dtype)
            self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        # Left to itself, AsyncVectorEnv ends its processes while they listen, and each complains at length.
        weakref.finalize(self, _close, env)

    def reset(self, *, seed: int | Sequence[int] | None = None, options: dict | None = None):
        """Start new episodes; `seed`, ints >= 0, makes all that follows repeatable. Returns (obs [N, O], infos)."""
        seed, self._first_seed = self._first_seed if seed is None else seed, None
        if seed is not None:
            children = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(self.num_envs)]
            random.seed(children[0])
            np.random.seed(children[0])
            seed = children if isinstance(self.env.unwrapped, SyncVectorEnv | AsyncVectorEnv) else children[0]
        with _death_is_told():
            obs, infos = self.env.reset(seed=seed, options=options)
        self.episode_lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._returns = np.zeros(self.num_envs)
        self._highest = np.full((len(self._told), self.num_envs), -np.inf)
        return self._numbers("observation", obs, *self.single_observation_space.shape).astype(np.float32), infos

    def step(self, actions: np.ndarray):
        """One step of every task: actions [N, A] -> obs [N, O], rewards, terminations, truncations [N], infos."""
        actions = self._numbers("action", actions, *self._bounds.shape)
        if self.single_action_space is not self._bounds:
            low, high = (bound.astype(np.float64) for bound in (self._bounds.low, self._bounds.high))
            actions = np.clip(low + (high / 2 - low / 2) * (actions + 1), low, high)
        with _death_is_told():
            obs, rewards, *ends, infos = self.env.step(actions.astype(self._bounds.dtype))
        obs = self._numbers("observation", obs, *self.single_observation_space.shape)
        rewards = self._numbers("reward", rewards)
        terminations, truncations = (self._numbers("termination or truncation", end) for end in ends)
        if not np.isin((terminations, truncations), (0, 1)).all():
            raise gym.error.Error("terminations and truncations of the environments must be booleans")
        terminations, truncations = terminations.astype(bool), truncations.astype(bool)
        dones = terminations | truncations

        real_next_obs = obs
        if dones.any():
            if "final_obs" not in infos:
                raise gym.error.Error("infos['final_obs'] is missing from a step in which an episode ended")
            real_next_obs = [infos["final_obs"][i] if done else obs[i] for i, done in enumerate(dones)]
            real_next_obs = self._numbers("last observation", real_next_obs, *self.single_observation_space.shape)
        infos["real_next_obs"] = real_next_obs.astype(np.float32)

        self.episode_lengths += 1
        self._returns += rewards
        self._highest = np.maximum(self._highest, [self._values(name, dones, infos) for name in self._told])
        self.tells_success |= bool(np.isfinite(self._highest[0]).any())
        if dones.any():
            for name, silent in zip(self._told, dones & np.isinf(self._highest), strict=True):
                if silent.any() and (name != "success" or self.tells_success):
                    raise gym.error.Error(f"an episode of task {self.tasks[silent.argmax()]} had no info['{name}']")
            success, *others = np.where(np.isinf(self._highest), np.nan, self._highest)
            values = success, self._returns.copy(), self.episode_lengths.copy(), *others
            infos["episode"] = dict(zip(self.metrics, values, strict=True))
            self._highest[:, dones], self._returns[dones], self.episode_lengths[dones] = -np.inf, 0, 0
        return obs.astype(np.float32), rewards, terminations, truncations, infos

    def _numbers(self, name: str, values, *shape: int) -> np.ndarray:
        """`values` as a new array [N, *shape] of finite numbers."""
        try:
            numbers = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise gym.error.Error(f"every {name} of the environments must be a number, not {values!r}") from None
        if numbers.shape != (self.num_envs, *shape):
            raise gym.error.Error(
                f"{name}s of the environments have shape {numbers.shape}, not {self.num_envs, *shape}"
            )
        # Replay is in single precision.
        finite = (np.abs(numbers) <= np.finfo(np.float32).max).reshape(self.num_envs, -1).all(1)
        if not finite.all():
            raise FloatingPointError(f"a non-finite {name} in task {self.tasks[finite.argmin()]}")
        return numbers

    def _values(self, name: str, dones: np.ndarray, infos: dict) -> np.ndarray:
        """infos[name] of every task [N], of the last step where an episode ended; -inf where it is missing."""
        values = np.full(self.num_envs, -np.inf)
        for part, tasks in ((infos, ~dones), (infos.get("final_info", infos), dones)):
            if name in part and tasks.any():
                told = tasks & np.asarray(part.get(f"_{name}", True))
                values[told] = self._numbers(f"info['{name}']", np.where(told, part[name], 0))[told]
        return values


@contextlib.contextmanager
def _death_is_told():
    """Say what it means that the pipe to the process of an environment has closed."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError("the process of an environment has died") from error


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
    gave them; column acted/POLICY is the share of steps in which a policy did. The first episode of every task goes
    into the file `video`, if given. Returns None as soon as `stop` is not empty. Global random generators are left as
    they were, so that training goes on as if there had been no evaluation.

    Raises:
        gymnasium.error.Error: an episode does not end.
    """
    obs, _ = envs.reset(seed=seed)
    finished, tasks = [[] for _ in envs.tasks], np.arange(envs.num_envs)
    counts = np.zeros((envs.num_envs, envs.num_envs))  # [N, P]
    with _Video(video, envs) if video else contextlib.nullcontext() as recording:
        for step in range(1, MAX_EVALUATION_STEPS + 1):
            actions = actor.act(obs, envs.episode_lengths)
            policies = np.asarray(actor.policies.cpu())
            counts[tasks, policies] += 1
            if recording:
                recording.add(policies, [not episodes_of_task for episodes_of_task in finished])
            obs, _, terminations, truncations, infos = envs.step(actions)
            for i in np.flatnonzero(terminations | truncations):
                finished[i].append([infos["episode"][name][i] for name in envs.metrics])
            if min(map(len, finished)) >= episodes:
                rows = pd.DataFrame([np.mean(rows[:episodes], axis=0) for rows in finished], columns=list(envs.metrics))
                rows[[f"acted/{task}" for task in envs.tasks]] = counts / step
                rows.insert(0, "task", envs.tasks)
                return rows
            if stop:
                return None
    slowest = envs.tasks[np.argmin([len(rows) for rows in finished])]
    raise gym.error.Error(
        f"an evaluation of {MAX_EVALUATION_STEPS:,} steps did not see {episodes} episodes of task {slowest} end; "
        "give it a time limit (gymnasium.wrappers.TimeLimit)"
    )


def format_table(rows: pd.DataFrame) -> str:
    """Task, success, return and share of the task's own policy, from rows of `evaluate`, with their means last."""
    table = rows[["task", "success_rate", "episodic_return"]].assign(
        own_policy=rows.filter(like="acted/").to_numpy().diagonal()
    )
    table.loc[len(table)] = ["mean", *table.iloc[:, 1:].mean()]
    table.columns = ["task", "success", "return", "own policy"]
    return table.to_string(index=False, float_format="%.2f", na_rep="-")


class _Video:
    """A file of tiles, one for each task: the first episode, under the task's name and that of the policy that acts."""

    def __init__(self, path: Path, envs: MultiTaskEnv):
        self.path, self.envs, self.tiles, self.writer = path, envs, [None] * envs.num_envs, None

    def __enter__(self):
        return self

    def add(self, policies: Sequence[int], running: Sequence[bool]) -> None:
        """Append a frame, with new pictures of the tasks [N] that are `running`."""
        tasks, metadata = self.envs.tasks, self.envs.metadata
        if "acting_policy" in metadata.get("attributes", ()):
            self.envs.set_attr("acting_policy", [int(policy) for policy in policies])
        for i, picture in enumerate(self.envs.render()):
            if running[i]:
                height, width, _ = picture.shape
                tile = Image.new("RGB", (width, height + 28))
                tile.paste(Image.fromarray(picture), (0, 28))
                ImageDraw.Draw(tile).text((4, 2), f"{tasks[i]}\n{tasks[policies[i]]} acts", "white", spacing=0)
                self.tiles[i] = np.asarray(tile)
        columns = math.ceil(math.sqrt(len(tasks)))
        empty = [np.zeros_like(self.tiles[0])] * (-len(tasks) % columns)
        rows = np.array(self.tiles + empty).reshape(-1, columns, *self.tiles[0].shape)
        frame = np.concatenate(np.concatenate(rows, axis=1), axis=1)
        frame = frame[: len(frame) // 2 * 2, : frame.shape[1] // 2 * 2]  # the codec needs even sizes
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fps = metadata.get("render_fps", 30)
            self.writer = FFMPEG_VideoWriter(str(self.path), frame.shape[1::-1], fps)
        self.writer.write_frame(frame)

    def __exit__(self, *_):
        if self.writer:
            self.writer.close()
