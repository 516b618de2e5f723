"""A user's tasks as envs.make_vec runs them, what it refuses, and evaluate: statistics, videos."""

import itertools
import os
import random
import subprocess
import sys

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.wrappers import TimeLimit
from helpers import ROOT

import envs
import envs.evaluation

both_kinds = pytest.mark.parametrize("kind", ["sync", "async"])


class Counter(gym.Env):
    """Observes the number of steps, is truncated with success after `length`; reward 1 a step.

    `changes` replace parts of what a step returns, as functions of what it would be. All
    observations are the same array, as in some simulators.
    """

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10, "metrics": ("height",)}
    acting_policy = None

    def __init__(self, length=3, render_mode=None, **changes):
        self.length, self.render_mode, self.changes = length, render_mode, changes
        self.acted, self.actions, self.options = [], [], []
        self.state = np.zeros(1, np.float32)

    def reset(self, *, seed=None, options=None):
        self.options.append(options)
        self.steps = 0
        self.state[:] = 0
        return self.change("obs", self.state), {}

    def change(self, name, value):
        return self.changes[name](value) if name in self.changes else value

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        self.state[:] = self.steps
        ended = self.steps == self.length
        obs = self.change("obs", self.state)
        info = self.change("info", {"success": ended, "height": self.steps})
        return obs, self.change("reward", 1.0), False, ended, info

    def render(self):
        """A picture whose brightness is ten times the number of steps."""
        self.acted.append(self.acting_policy)
        return np.full((64, 64, 3), 10 * self.steps, np.uint8)


def with_spaces(env=None, **spaces):
    env = env or Counter()
    vars(env).update(spaces)
    return env


def make(*thunks, kind="sync", render_mode=None):
    """The user's tasks that `thunks` make, as the command line gets them."""
    names = [chr(ord("a") + i) for i in range(len(thunks))]
    return make_user(lambda render_mode: dict(zip(names, thunks, strict=True)), kind, render_mode)


def make_user(function, kind="sync", render_mode=None):
    globals()["user_function"] = function
    return envs.make_vec(f"{__name__}:user_function", kind, render_mode)


@pytest.mark.parametrize("seed", [2**40, [5, 300, 2]])
def test_each_task_is_seeded_with_its_own_child(seed):
    vec = envs.make_vec("PointReach-v0")
    vec.reset(seed=seed)
    children = np.random.SeedSequence(seed).spawn(5)
    seeds = [int(child.generate_state(1)[0]) for child in children]
    assert [env.unwrapped.np_random_seed for env in vec.unwrapped.envs] == seeds


@both_kinds
def test_global_generators_are_seeded_in_every_process(kind):
    def make_noisy():
        return Counter(obs=lambda obs: obs + random.random() + np.random.random())

    vec = make(make_noisy, make_noisy, kind=kind)
    seen = []
    for seed in (3, 3, 4):
        vec.reset(seed=seed)
        seen.append([vec.step(np.zeros((2, 1)))[0].tolist() for _ in range(5)])
    assert seen[0] == seen[1] != seen[2]
    if kind == "async":
        assert seen[0][0][0] != seen[0][0][1]
    vec.close()


@both_kinds
def test_what_follows_the_last_step(kind):
    """Two tasks of different lengths: true last observations, and first ones of next episodes."""
    vec = make(lambda: Counter(2), lambda: Counter(3), kind=kind)
    vec.reset()
    assert vec.episode_lengths.tolist() == [0, 0]
    for step in range(1, 7):
        obs, rewards, terminations, truncations, infos = vec.step(np.zeros((2, 1)))
        assert obs.dtype == infos["real_next_obs"].dtype == np.float32
        assert rewards.tolist() == [1, 1] and not terminations.any()
        assert truncations.tolist() == [step % 2 == 0, step % 3 == 0]
        assert ("episode" in infos) == truncations.any()
        assert infos["success"].tolist() == truncations.tolist()
        assert obs[:, 0].tolist() == [step % 2, step % 3] == vec.episode_lengths.tolist()
        assert infos["real_next_obs"].ravel().tolist() == [(step - 1) % 2 + 1, (step - 1) % 3 + 1]
    vec.close()


@both_kinds
def test_statistics_of_an_episode(kind):
    """Success and metrics are the highest of any step; infos may lack them or have other types."""
    heights = iter([1, 5, -2, -3, -1, -2])  # of two episodes

    def tell(info):
        height = next(heights)
        return {"success": height == 5, "height": height, "other": 7.0}

    tasks = [
        lambda: Counter(info=tell, reward=lambda _: -0.5),
        lambda: Counter(info=lambda info: info if info["success"] else {}),
        lambda: Counter(info=lambda _: {}),
        lambda: Counter(info=lambda _: {"success": 0, "height": np.uint8(1)}),
        lambda: Counter(info=lambda _: {"success": np.float32(0.5), "height": 0.25}),
    ]
    vec = make(*tasks, kind=kind)
    assert vec.metrics == ("success_rate", "episodic_return", "episodic_length", "height")
    vec.reset()
    for success, height in ((1, 5), (0, -1)):
        for _ in range(3):
            *_, infos = vec.step(np.zeros((5, 1)))
        episode = infos["episode"]
        np.testing.assert_array_equal(episode["success_rate"], [success, 1, np.nan, 0, 0.5])
        np.testing.assert_array_equal(episode["height"], [height, 3, np.nan, 1, 0.25])
        assert episode["episodic_return"].tolist() == [-1.5, 3, 3, 3, 3]
        assert episode["episodic_length"].tolist() == [3] * 5
        assert infos["success"][0] == 0  # of the last step alone
    vec.close()


@both_kinds
def test_observations_and_rewards_of_many_types(kind):
    """Integers, booleans, doubles, big-endian numbers, a Dict; all are float32 [N, O]."""
    tasks = []
    for name in ("int64", "uint8", "float64", ">f4"):
        dtype = np.dtype(name)
        env = Counter(obs=lambda x, dtype=dtype: x.astype(dtype), reward=dtype.type)
        tasks.append(with_spaces(env, observation_space=Box(0, 9, (1,), dtype)))
    space = Dict({"x": Box(-9, 9, (1,), np.float64)})
    env = Counter(obs=lambda x: {"x": x.astype(float)})
    tasks.append(with_spaces(env, observation_space=space))
    vec = make(*[lambda env=env: env for env in tasks], kind=kind)
    assert vec.reset()[0].dtype == np.float32
    obs, rewards, *_ = vec.step(np.zeros((5, 1)))
    assert obs.tolist() == [[1]] * 5 and rewards.tolist() == [1] * 5 and obs.dtype == np.float32
    vec.close()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_scaled_to_the_bounds_and_never_leave_them(dtype):
    low, high = np.array([[0, -0.3, -1e30], [8, 1.7, 1e30]], dtype)
    space = Box(low, high, dtype=dtype)
    env = with_spaces(action_space=space)
    vec = make(lambda: env)
    vec.reset()
    assert vec.single_action_space == Box(-1, 1, (3,), dtype)
    for action, expected in ((-1, low), (-1.5, low), (1, high), (1.5, high), (0.5, [6, 1.2, 5e29])):
        vec.step(np.full((1, 3), action, np.float32))
        np.testing.assert_allclose(env.actions[-1], expected, rtol=1e-6)
    for action in np.linspace(-1, 1, 50, dtype=np.float32):
        vec.step(np.full((1, 3), action))
        assert np.all(low <= env.actions[-1]) and np.all(env.actions[-1] <= high)


REAL_ACTIONS = r"task c needs bounded, real actions \[A\], but has "
SAME = r"all tasks need the same {}, but there are .*\(a\) and .*\(c\)"


@pytest.mark.parametrize(
    "words, change",
    [
        (REAL_ACTIONS, {"action_space": Box(-np.inf, 1, (1,))}),
        (REAL_ACTIONS, {"action_space": Box(0, 9, (1,), np.int64)}),
        (REAL_ACTIONS, {"action_space": Box(-1, 1, (2, 2))}),
        (REAL_ACTIONS, {"action_space": Discrete(3)}),
        (SAME.format("observation_space"), {"observation_space": Box(-1, 1, (2,))}),
        (SAME.format("action_space"), {"action_space": Box(-1, 1, (2,))}),
        (SAME.format("metrics"), {"metadata": {"metrics": ("width",)}}),
        ("task c does not have render_mode None", {"render_mode": "human"}),
    ],
)
def test_tasks_that_are_refused(words, change):
    with pytest.raises(gym.error.Error, match=words) as caught:
        make(Counter, Counter, lambda: with_spaces(**change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("result", [None, {}, [Counter], Counter])
def test_no_tasks(result):
    with pytest.raises(gym.error.Error, match="must return a dict of names and functions, not "):
        make_user(lambda render_mode: result)


def test_what_exists_once_is_made_once_at_a_time():
    """As a port or a licence: each task that is tried is closed before any is made again."""
    events = []

    class Licence(Counter):
        def __init__(self):
            super().__init__()
            events.append("made")

        def close(self):
            events.append("closed")

    make(Licence, Licence).close()
    assert events == ["made", "closed"] * 2 + ["made"] * 2 + ["closed"] * 2


@both_kinds
@pytest.mark.parametrize(
    "name, changes, action",
    [
        ("observation", {"obs": lambda _: np.full(1, -1e39)}, 0),
        ("reward", {"reward": lambda _: np.nan}, 0),
        ("action", {}, -1e39),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_single_precision_cannot_hold(kind, name, changes, action):
    vec = make(Counter, lambda: Counter(**changes), kind=kind)
    with pytest.raises(FloatingPointError, match=f"a non-finite {name} in task b"):
        vec.reset()
        vec.step(np.array([[0], [action]]))
    vec.close()


def test_a_users_mujoco_tasks_draw_without_a_screen(opengl):
    """In a process of its own, because MuJoCo chooses once what it draws with."""
    code = (
        "import gymnasium as gym, envs\n"
        "def make(render_mode):\n"
        "    return {'a': lambda: gym.make('Hopper-v5', render_mode=render_mode)}\n"
        "vec = envs.make_vec('__main__:make', 'sync', 'rgb_array'); vec.reset()\n"
        "print(vec.render()[0].std() > 10); vec.close()"
    )
    environ = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


class Actor:
    """Does nothing; in step t policies[t] do it, the last of them for ever."""

    def __init__(self, *policies):
        self.steps, self.lengths = policies, []

    def act(self, obs, episode_lengths):
        torch.rand(1)
        self.policies = torch.as_tensor(self.steps[min(len(self.lengths), len(self.steps) - 1)])
        self.lengths.append(episode_lengths.tolist())
        return np.zeros((len(obs), 1))


def test_evaluation_of_the_first_episodes():
    """The fast task's later episodes, which are shorter, do not count."""
    env = Counter(4)
    lengths = itertools.chain([4, 4], itertools.repeat(2))

    def get_shorter(**kwargs):
        env.length = next(lengths)
        return Counter.reset(env, **kwargs)

    env.reset = get_shorter
    vec = make(lambda: env, lambda: Counter(10))
    actor = Actor([0, 1])
    state = torch.get_rng_state()
    rows = envs.evaluate(vec, actor, 2, seed=1)
    assert torch.equal(state, torch.get_rng_state())  # training goes on as if nothing had been
    assert actor.lengths == [[t % 4 if t < 8 else t % 2, t % 10] for t in range(20)]
    assert list(rows.columns) == ["task", *vec.metrics]
    assert rows.to_numpy().tolist() == [["a", 1, 4, 4, 4], ["b", 1, 10, 10, 10]]
    assert env.options == [{"evaluation": True}, *[None] * (len(env.options) - 1)]


def test_an_episode_that_never_ends(monkeypatch):
    monkeypatch.setattr(envs.evaluation, "MAX_EPISODE_STEPS", 20)
    vec = make(Counter, lambda: Counter(5), lambda: Counter(10**9))
    with pytest.raises(gym.error.Error, match="of task c has not ended in 20 steps.*TimeLimit"):
        envs.evaluate(vec, Actor([0, 1, 2]), 4, 1)
    assert len(envs.evaluate(make(lambda: Counter(19)), Actor([0]), 4, 1)) == 1


@both_kinds
def test_a_video_shows_the_first_episode_of_every_task_and_who_acts(kind, tmp_path):
    tasks = [lambda n=n: TimeLimit(Counter(n, render_mode="rgb_array"), 99) for n in (3, 25)]
    vec = make(*tasks, kind=kind, render_mode="rgb_array")
    path = tmp_path / "videos" / "own.mp4"
    envs.evaluate(vec, Actor(*[[0, 0]] * 5, [0, 1]), 2, 1, path)
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    assert len(frames) == 25 and meta["fps"] == 10
    left, right = np.split(np.stack(frames).astype(int), 2, axis=2)
    brightness = [tile[:, 45:95, 10:50].mean((1, 2, 3)) for tile in (left, right)]
    assert np.allclose(brightness[0], [0, 10, *[20] * 23], atol=4)  # its last picture stands still
    assert np.allclose(brightness[1], 10 * np.arange(25), atol=4)
    # Above are the names of the task and of the policy that acts, whose colour the border has.
    assert np.abs(left[4, 4:20, 4:-4] - right[4, 4:20, 4:-4]).max() > 60
    for part in (right[:, 21:37, 4:-4], right[:, 10:-10, 1]):
        assert np.abs(part[4] - part[5]).max() > 100
    # An environment that draws who acts is told, also through wrappers.
    assert vec.unwrapped.get_attr("acted")[1][:6] == [0] * 5 + [1]
    vec.close()
