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

    `changes` replace parts of what a step returns, as functions of what it would be.
    """

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10, "metrics": ("height",)}
    acting_policy = None

    def __init__(self, length=3, render_mode=None, **changes):
        self.length, self.render_mode, self.changes = length, render_mode, changes
        self.acted, self.actions, self.options, self.is_closed = [], [], [], False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options.append(options)
        self.steps = 0
        return self.change("obs", np.zeros(1, np.float32)), {}

    def change(self, name, value):
        return self.changes[name](value) if name in self.changes else value

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        ended = self.steps == self.length
        obs = self.change("obs", np.full(1, self.steps, np.float32))
        info = self.change("info", {"success": ended, "height": self.steps})
        return obs, self.change("reward", 1.0), False, ended, info

    def render(self):
        """A picture whose brightness is ten times the number of steps."""
        self.acted.append(self.acting_policy)
        return np.full((64, 64, 3), 10 * self.steps, np.uint8)

    def close(self):
        self.is_closed = True


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


def steps_until(vec, ends):
    """Step until an episode of each of the tasks `ends` has ended; the infos of the last step."""
    left = set(ends)
    while left:
        *_, terminations, truncations, infos = vec.step(np.zeros(vec.action_space.shape))
        left -= set(np.flatnonzero(terminations | truncations))
    return infos


def refuse(words, *thunks, **options):
    with pytest.raises(gym.error.Error, match=words) as caught:
        make(*thunks, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", [2**40, [5, 300, 2]])
def test_each_task_is_seeded_with_its_own_child(seed):
    vec = envs.make_vec("PointReach-v0")
    first = vec.reset(seed=seed)[0].tolist()
    children = np.random.SeedSequence(seed).spawn(5)
    seeds = [int(child.generate_state(1)[0]) for child in children]
    assert [env.unwrapped.np_random_seed for env in vec.unwrapped.envs] == seeds
    assert len(set(seeds)) == 5
    assert vec.reset()[0].tolist() != first == vec.reset(seed=seed)[0].tolist()


@both_kinds
@pytest.mark.parametrize("noise", [random.random, np.random.random])
def test_global_generators_are_seeded_in_every_process(kind, noise):
    def make_noisy():
        return Counter(obs=lambda obs: obs + np.float32(noise()))

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


def test_statistics_of_an_episode():
    """Success and metrics at their highest, though the last step's and next episode's are lower."""
    heights = iter([1, 5, -2, 0, -3, -1, -2, -4])

    def tell(info):
        height = next(heights)
        return {"success": height == 5, "height": height, "other": 7.0}

    vec = make(lambda: Counter(4, reward=lambda _: -0.5, info=tell))
    assert vec.metrics == ("success_rate", "episodic_return", "episodic_length", "height")
    vec.reset()
    for expected in ([1, -2, 4, 5], [0, -2, 4, -1]):
        infos = steps_until(vec, [0])
        found = [infos["episode"][name].tolist() for name in vec.metrics]
        assert found == [[value] for value in expected]
        assert infos["success"].tolist() == [0]  # of the last step alone


@both_kinds
def test_infos_that_differ_from_task_to_task(kind):
    """Success told in last steps alone, by nobody, and numbers of other types than the first's."""
    tasks = [
        lambda: Counter(info=lambda info: info if info["success"] else {}),
        lambda: Counter(info=lambda _: {}),
        lambda: Counter(info=lambda _: {"success": 0, "height": np.uint8(1)}),
        lambda: Counter(info=lambda _: {"success": np.float32(0.5), "height": 0.25}),
    ]
    vec = make(*tasks, kind=kind)
    vec.reset()
    episode = steps_until(vec, [0])["episode"]
    np.testing.assert_array_equal(episode["success_rate"], [1, np.nan, 0, 0.5])
    np.testing.assert_array_equal(episode["height"], [3, np.nan, 1, 0.25])
    assert episode["episodic_return"].tolist() == [3] * 4
    vec.close()


@both_kinds
def test_observations_and_rewards_of_many_types(kind):
    """Integers, booleans, doubles, big-endian numbers, a Dict; all are float32 [N, O]."""
    boxes = [Box(0, 9, (1,), dtype) for dtype in (np.int64, np.uint8, np.float64, ">f4")]
    tasks = []
    for space in boxes:
        env = Counter(
            obs=lambda x, t=space.dtype: x.astype(t), reward=lambda x, t=space.dtype: t.type(x)
        )
        tasks.append(lambda env=env, space=space: with_spaces(env, observation_space=space))
    space = Dict({"x": Box(-9, 9, (1,), np.float64)})
    env = Counter(obs=lambda x: {"x": x.astype(float)})
    tasks.append(lambda: with_spaces(env, observation_space=space))
    vec = make(*tasks, kind=kind)
    assert vec.reset()[0].dtype == np.float32
    obs, rewards, *_ = vec.step(np.zeros((5, 1)))
    assert obs.tolist() == [[1]] * 5 and rewards.tolist() == [1] * 5 and obs.dtype == np.float32
    vec.close()


def test_arrays_that_the_environments_use_again():
    """An observation that was returned stays as it was."""
    state = np.zeros(1, np.float32)

    def overwrite(obs):
        state[:] = obs
        return state

    vec = make(lambda: Counter(obs=overwrite))
    first, _ = vec.reset()
    second, *_, infos = vec.step(np.zeros((1, 1)))
    vec.step(np.zeros((1, 1)))
    *_, infos = vec.step(np.zeros((1, 1)))
    assert first.tolist() == [[0]] and second.tolist() == [[1]]
    assert infos["real_next_obs"].tolist() == [[3]]


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


@pytest.mark.parametrize(
    "space",
    [
        Box(-np.inf, 1, (1,)),
        Box(0, 9, (1,), np.int64),
        Box(-1, 1, (2, 2)),
        Discrete(3),
        Dict({"x": Box(-1, 1, (1,))}),
    ],
)
@both_kinds
def test_actions_that_are_refused(space, kind):
    tasks = Counter, lambda: with_spaces(action_space=space)
    refuse(r"task b needs bounded, real actions \[A\], but has ", *tasks, kind=kind)


@both_kinds
@pytest.mark.parametrize(
    "name, change",
    [
        ("observation_space", {"observation_space": Box(-1, 1, (2,))}),
        ("action_space", {"action_space": Box(-1, 1, (2,))}),
        ("metrics", {"metadata": {"metrics": ("width",)}}),
    ],
)
def test_tasks_that_differ_are_refused(kind, name, change):
    words = rf"all tasks need the same {name}, but there are .*\(a\) and .*\(c\)"
    refuse(words, Counter, Counter, lambda: with_spaces(**change), kind=kind)


@pytest.mark.parametrize("result", [None, {}, [Counter], Counter])
def test_no_tasks(result):
    with pytest.raises(gym.error.Error, match="must return a dict of names and functions, not "):
        make_user(lambda render_mode: result)


@both_kinds
def test_an_environment_that_cannot_draw_is_refused_at_once(kind):
    refuse(
        "task a does not have render_mode rgb_array", Counter, kind=kind, render_mode="rgb_array"
    )


@both_kinds
def test_what_exists_once_is_made_once_at_a_time(kind, tmp_path):
    """As a port or a licence: a task is made again when the one before has been closed."""

    class Licence(Counter):
        def __init__(self, i):
            super().__init__()
            self.path = tmp_path / str(i)
            self.path.touch(exist_ok=False)

        def close(self):
            self.path.unlink()

    vec = make(*[lambda i=i: Licence(i) for i in (0, 1)], kind=kind)
    vec.reset()
    vec.close()
    assert not list(tmp_path.iterdir())


@both_kinds
@pytest.mark.parametrize("number", [np.nan, -1e39])
@pytest.mark.parametrize("part", ["obs", "reward", "action"])
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_single_precision_cannot_hold(part, number, kind):
    def spoil(_):
        return np.full(1, number) if part == "obs" else number

    changes = {} if part == "action" else {part: spoil}
    vec = make(Counter, lambda: Counter(**changes), kind=kind)
    name = "observation" if part == "obs" else part
    with pytest.raises(FloatingPointError, match=f"a non-finite {name} in task b"):
        vec.reset()
        vec.step(np.array([[0], [number if part == "action" else 0]]))
    vec.close()


def test_a_users_mujoco_tasks_draw_without_a_screen(opengl):
    """In a process of its own, because MuJoCo chooses once what it draws with."""
    code = (
        "import sys; sys.path[:0] = ['tests']; import gymnasium as gym, envs\n"
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
        self.first = getattr(self, "first", obs.tolist())
        self.policies = torch.as_tensor(self.steps[min(len(self.lengths), len(self.steps) - 1)])
        self.lengths.append(episode_lengths.tolist())
        return np.zeros((len(obs), 2 if obs.shape[1] == 2 else 1))


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


def test_an_evaluation_starts_new_episodes_by_its_seed():
    vec = envs.make_vec("PointReach-v0")
    vec.reset()
    vec.step(np.ones((5, 2)))
    seeds = [1, 2], [1, 2], [1, 3]
    actors = [Actor(np.arange(5)) for _ in seeds]
    rows = [envs.evaluate(vec, actor, 2, seed) for actor, seed in zip(actors, seeds, strict=True)]
    assert rows[0].equals(rows[1]) and not rows[0].equals(rows[2])
    assert actors[0].first == actors[1].first == vec.reset(seed=[1, 2])[0].tolist()
    assert actors[2].first != actors[0].first
    assert rows[0]["episodic_length"].tolist() == [50] * 5


def test_an_episode_that_never_ends(monkeypatch):
    monkeypatch.setattr(envs.evaluation, "MAX_EPISODE_STEPS", 20)
    vec = make(Counter, lambda: Counter(5), lambda: Counter(10**9))
    with pytest.raises(gym.error.Error, match="of task c has not ended in 20 steps.*TimeLimit"):
        envs.evaluate(vec, Actor([0, 1, 2]), 4, 1)
    assert len(envs.evaluate(make(lambda: Counter(19)), Actor([0]), 4, 1)) == 1


def read_video(path):
    """Its frames [T, H, W, 3], and frames per second."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return np.stack(frames).astype(int), meta["fps"]


@both_kinds
def test_a_video_shows_the_first_episode_of_every_task_and_who_acts(kind, tmp_path):
    tasks = [lambda n=n: TimeLimit(Counter(n, render_mode="rgb_array"), 99) for n in (3, 25)]
    vec = make(*tasks, kind=kind, render_mode="rgb_array")
    path = tmp_path / "videos" / "own.mp4"
    envs.evaluate(vec, Actor(*[[0, 0]] * 5, [0, 1]), 2, 1, path)
    frames, fps = read_video(path)
    assert len(frames) == 25 and fps == 10
    left, right = np.split(frames, 2, axis=2)
    brightness = [tile[:, 45:95, 10:50].mean((1, 2, 3)) for tile in (left, right)]
    assert np.allclose(brightness[0], [0, 10, *[20] * 23], atol=4)  # its last picture stands still
    assert np.allclose(brightness[1], 10 * np.arange(25), atol=4)
    # Above, the names of the task and of the policy that acts, whose colour the border has.
    title, policy, border = right[:, 4:20, 4:-4], right[:, 21:37, 4:-4], right[:, 10:-10, 1]
    changes = [np.abs(part[4] - part[5]).max() for part in (title, policy, border)]
    assert changes[0] < 60 < changes[1] and changes[2] > 100
    assert np.abs(title[4] - left[4, 4:20, 4:-4]).max() > 60
    # An environment that draws who acts is told, also through wrappers.
    acted = vec.unwrapped.get_attr("unwrapped")[1].acted if kind == "sync" else [0] * 5 + [1]
    assert acted[:6] == [0] * 5 + [1]
    vec.close()
