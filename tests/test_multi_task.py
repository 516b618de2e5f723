"""MultiTaskEnv and evaluate: seeds, ends of episodes, statistics, videos; users' environments, converted or refused."""

import contextlib
import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

import envs
from envs.multi_task import MultiTaskEnv

SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}
both_kinds = pytest.mark.parametrize("cls", [SyncVectorEnv, AsyncVectorEnv], ids=["sync", "async"])


class Counter(gym.Env):
    """A user's task: observes the number of steps, is truncated with success after `length`, and has reward 1 a step.

    `changes` replace what a step returns (obs, reward, terminated, truncated, info), or all that step and reset return,
    as functions of what it would be.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    acting_policy = None

    def __init__(self, length=3, render_mode=None, **changes):
        self.length, self.render_mode, self.changes, self.acted = length, render_mode, changes, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.change("reset", (np.zeros(1, np.float32), {}))

    def change(self, name, value):
        return self.changes[name](value) if name in self.changes else value

    def step(self, action):
        self.steps += 1
        ended = self.steps == self.length
        obs = np.full(1, self.steps, np.float32)
        step = {"obs": obs, "reward": 1.0, "terminated": False, "truncated": ended, "info": {"success": ended}}
        return self.change("step", tuple(self.change(name, value) for name, value in step.items()))

    def render(self):
        """A picture whose brightness is ten times the number of steps."""
        self.acted.append(self.acting_policy)
        return np.full((64, 64, 3), 10 * self.steps, np.uint8)


class Plain(VectorEnv):
    """A user's two tasks, of three and five steps, in a class that is none of Gymnasium's; `changes` as above."""

    num_envs = 2
    metadata = SAME_STEP
    single_observation_space = gym.spaces.Box(-9, 9, (2,), np.float32)

    def __init__(self, actions=gym.spaces.Box(-1, 1, (1,), np.float32), **changes):  # noqa: B008
        self.single_action_space, self.changes, self.seeds = actions, changes, []
        self.action_space = gym.vector.utils.batch_space(actions, 2)

    def observe(self):
        return np.repeat(self.steps[:, None], 2, axis=1).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.steps = np.zeros(2)
        return self.change("obs", self.observe()), {}

    change = Counter.change

    def step(self, actions):
        self.actions = actions
        self.steps = self.steps + 1
        dones, infos = self.steps == (3, 5), {"success": np.zeros(2, bool)}
        if dones.any():
            infos |= {"final_obs": self.observe(), "final_info": {"success": dones}}
            self.steps = np.where(dones, 0, self.steps)
        step = {"obs": self.observe(), "rewards": np.ones(2), "terminations": dones, "truncations": np.zeros(2, bool)}
        return tuple(self.change(name, value) for name, value in (step | {"infos": infos}).items())


def make(function, seed=1, **kwargs) -> MultiTaskEnv:
    """The user's environments that `function()` returns, as the command line gets them."""
    globals()["user_function"] = lambda *_: function()
    return envs.make_vec(f"{__name__}:user_function", seed, **kwargs)


def make_tasks(*thunks, cls=SyncVectorEnv, metadata=None, render_mode=None, **kwargs) -> MultiTaskEnv:
    """The user's tasks that `thunks` make."""

    def function():
        vec = cls(thunks, **SAME_STEP, **kwargs)
        vec.metadata = {**vec.metadata, **(metadata or {})}
        return vec

    return make(function, render_mode=render_mode)


def roll_out(vec, steps, **reset):
    """Observations, rewards, ends, last observations and statistics of `steps` steps with fixed actions."""
    rng = np.random.default_rng(0)
    rows = [vec.reset(**reset)[0]]
    for _ in range(steps):
        *row, infos = vec.step(rng.uniform(-1, 1, vec.action_space.shape))
        rows += [*row, infos["real_next_obs"], *infos.get("episode", {}).values()]
    return np.concatenate([np.ravel(row).astype(float) for row in rows])


def steps_until(vec, ends):
    """Step until an episode of each of the tasks `ends` has ended; the infos of the last step."""
    left = set(ends)
    while left:
        *_, terminations, truncations, infos = vec.step(np.zeros(vec.action_space.shape))
        left -= set(np.flatnonzero(terminations | truncations))
    return infos


# Seeds


@pytest.mark.parametrize("seed", [2**40, [5, 300, 2]])
def test_each_task_is_seeded_with_its_own_child(seed):
    vec = envs.make_vec("PointReach-v0", 1)
    vec.reset(seed=seed)
    children = [int(child.generate_state(1)[0]) for child in np.random.SeedSequence(seed).spawn(5)]
    assert [env.unwrapped.np_random_seed for env in vec.unwrapped.envs] == children and len(set(children)) == 5


def test_the_seed_of_make_vec_is_that_of_the_first_reset_alone():
    for vec in (envs.make_vec("PointReach-v0", 3), make(lambda: envs.make_vec("PointReach-v0", 8).env, seed=3)):
        first, second = vec.reset()[0].tolist(), vec.reset()[0].tolist()
        assert first == vec.reset(seed=3)[0].tolist() != second
        assert second == vec.reset()[0].tolist()


def test_a_vector_environment_of_another_kind_gets_one_int():
    vec = make(Plain)
    vec.reset(seed=[5, 6])
    assert vec.unwrapped.seeds[-1] == int(np.random.SeedSequence([5, 6]).spawn(2)[0].generate_state(1)[0])
    vec.reset()
    assert vec.unwrapped.seeds[-1] is None


@pytest.mark.parametrize(
    "cls, noise",
    [(SyncVectorEnv, random.random), (SyncVectorEnv, np.random.random), (AsyncVectorEnv, random.random)]
    + [(AsyncVectorEnv, np.random.random), (AsyncVectorEnv, lambda: torch.rand(1).item())],
)
def test_global_generators_are_seeded_in_every_process(cls, noise):
    vec = make_tasks(*[lambda: Counter(obs=lambda obs: obs + np.float32(noise()))] * 2, cls=cls)
    rows = roll_out(vec, 4, seed=3)
    assert np.array_equal(rows, roll_out(vec, 4, seed=3)) and not np.array_equal(rows, roll_out(vec, 4, seed=4))
    vec.reset(seed=3)
    first, second = vec.step(np.zeros((2, 1)))[0]
    assert first != second
    vec.close()


# Ends of episodes, statistics


@both_kinds
def test_what_follows_the_last_step(cls):
    """Two tasks of different lengths: the true last observation, and already the first of the next episode."""
    vec = make_tasks(lambda: Counter(2), lambda: Counter(3), cls=cls)
    vec.reset()
    lengths, seen, last = [vec.episode_lengths.tolist()], [], []
    for step in range(1, 7):
        obs, rewards, terminations, truncations, infos = vec.step(np.zeros((2, 1)))
        assert obs.dtype == infos["real_next_obs"].dtype == np.float32
        assert rewards.tolist() == [1, 1] and not terminations.any()
        assert truncations.dtype == bool and truncations.tolist() == [step % 2 == 0, step % 3 == 0]
        assert ("episode" in infos) == truncations.any()
        seen.append(obs[:, 0].tolist())
        last.append(infos["real_next_obs"][:, 0].tolist())
        lengths.append(vec.episode_lengths.tolist())
    assert seen == [[1, 1], [0, 2], [1, 0], [0, 1], [1, 2], [0, 0]]
    assert last == [[1, 1], [2, 2], [1, 3], [2, 1], [1, 2], [2, 3]]
    assert lengths == [[0, 0], *seen]
    vec.close()


def test_statistics_of_an_episode():
    """Success and metrics at their highest, also if the last step's are low and the next episode's are lower."""
    heights = [1, 5, -2, 0, -3, -1, -2, -4]
    values = itertools.cycle(heights)

    def tell(info):
        value = next(values)
        return {"success": value == 5, "height": float(value), "other": 7.0}

    vec = make_tasks(lambda: Counter(4, reward=lambda _: -0.5, info=tell), metadata={"metrics": ["height"]})
    assert vec.metrics == ("success_rate", "episodic_return", "episodic_length", "height")
    values = iter(heights)
    vec.reset()
    for expected in ([1, -2, 4, 5], [0, -2, 4, -1]):
        infos = steps_until(vec, [0])
        assert [infos["episode"][name].tolist() for name in vec.metrics] == [[value] for value in expected]
        assert not infos["succeeded"]  # the last step alone counts


def test_a_reset_ends_the_statistics_of_an_episode():
    vec = make_tasks(lambda: Counter(3, info=lambda info: {"success": not info["success"]}))
    vec.reset()
    vec.step(np.zeros((1, 1)))
    vec.reset()
    episode = steps_until(vec, [0])["episode"]
    assert episode["episodic_length"] == episode["episodic_return"] == 3 and episode["success_rate"] == 1


def test_success_that_nobody_tells_is_nan_and_said(capsys):
    vec = make_tasks(lambda: Counter(info=lambda _: {}))
    assert capsys.readouterr().err.endswith(" has no info['success']: judge its tasks by their returns\n")
    make_tasks(lambda: Counter(2000))
    assert capsys.readouterr().err == "task task-0 ended no episode in 1,000 steps: does it have a time limit?\n"
    vec.reset()
    episode = steps_until(vec, [0])["episode"]
    assert np.isnan(episode["success_rate"]).all() and episode["episodic_return"] == 3


def test_success_may_be_told_in_last_steps_alone():
    vec = make_tasks(lambda: Counter(info=lambda info: info if info["success"] else {}), lambda: Counter(5))
    vec.reset()
    assert steps_until(vec, [0])["episode"]["success_rate"].tolist() == [1, 0]


def test_success_told_by_a_vector_environment_without_final_info():
    vec = make(lambda: Plain(infos=lambda infos: {**infos, "success": infos.pop("final_info", infos)["success"]}))
    vec.reset()
    assert steps_until(vec, [0])["episode"]["success_rate"].tolist() == [1, 0]


@both_kinds
def test_types_of_info_may_differ(cls):
    """Gymnasium would make 0.7 a 0 if the first task says 0, in the last step too."""
    values = (0, 0.7), (np.uint8(1), 0.25), (True, np.float32(0.5))
    for pair in values:
        tasks = [
            lambda x=x: Counter(info=lambda info: {"success": x, "height": x} if info["success"] else {"height": x})
            for x in pair
        ]
        vec = make_tasks(*tasks, cls=cls, metadata={"metrics": ("height",)})
        vec.reset()
        episode = steps_until(vec, [0, 1])["episode"]
        assert episode["success_rate"].tolist() == episode["height"].tolist() == [*pair]
        vec.close()


# What is converted


OBSERVATIONS = {
    "reversed": lambda x: x[:, ::-1],
    "list": lambda x: x.tolist(),
    "big-endian": lambda x: x.astype(">f4"),
    "objects": lambda x: x.astype(object),
    "rows as objects": lambda x: np.array([*x, None], object)[:2],
}


@pytest.mark.parametrize("change", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observations_are_converted(change):
    vec = make(lambda: Plain(obs=change))
    rows = roll_out(vec, 6)
    assert np.array_equal(rows, roll_out(make(Plain), 6)) and vec.reset()[0].dtype == np.float32


@pytest.mark.parametrize("kind", [np.uint8, object])
def test_rewards_and_ends_are_converted(kind):
    def convert(x):
        return x.astype(kind)

    vec = make(lambda: Plain(rewards=convert, terminations=convert, truncations=convert))
    assert np.array_equal(roll_out(vec, 6), roll_out(make(Plain), 6))
    *_, terminations, truncations, _ = vec.step(np.zeros((2, 1)))
    assert terminations.dtype == truncations.dtype == bool


def test_observations_of_tasks_are_converted():
    """Of each type that fits the space."""
    types = (int, bool, np.uint8, np.float64)
    vec = make_tasks(*[lambda t=t: Counter(obs=lambda x: x.astype(t)) for t in types])
    vec.reset()
    assert vec.step(np.zeros((4, 1)))[0].tolist() == [[1]] * 4


def test_arrays_that_the_environments_use_again():
    """SyncVectorEnv(copy=False) changes the observations that it has returned; ours stay."""
    vec = make_tasks(lambda: Counter(), lambda: Counter(5), copy=False)
    first, _ = vec.reset()
    second, *_, infos = vec.step(np.zeros((2, 1)))
    vec.step(np.zeros((2, 1)))
    assert first.tolist() == [[0], [0]] and second.tolist() == infos["real_next_obs"].tolist() == [[1], [1]]


# Actions


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_actions_are_scaled_to_the_bounds_and_never_leave_them(dtype):
    """Also if these are huge, or one number, which rounding would miss."""
    huge = 2.0 ** (np.finfo(dtype).maxexp - 1)
    low, high = np.array([[0, -huge, 0.1], [8, huge, 0.1]], dtype)
    space = gym.spaces.Box(low, high, dtype=dtype)
    vec = MultiTaskEnv(Plain(space), ("a", "b"), 1)
    vec.reset()
    assert np.all(vec.single_action_space.low == -1) and np.all(vec.single_action_space.high == 1)
    for action, expected in ((-1, low), (-1.5, low), (1, high), (1.5, high), (0.5, [6, huge / 2, 0.1])):
        vec.step(np.full((2, 3), action))
        assert vec.unwrapped.actions.dtype == dtype
        assert vec.unwrapped.actions.tolist() == np.array([expected] * 2, dtype).tolist()
    for action in np.linspace(-1, 1, 50):
        vec.step(np.full((2, 3), action))
        assert all(space.contains(row) for row in vec.unwrapped.actions)


# What is refused, in one line


def spoilt(part, change):
    """`Plain` with `change` applied to a part of what its steps return, or to something in their infos."""
    names = {"success": "success", "last observation": "final_obs"}
    if part in names:
        name = names[part]
        return Plain(infos=lambda infos: infos | {name: change(infos[name])} if name in infos else infos)
    return Plain(**{part: change})


def plain_with(**attributes):
    vec = Plain()
    vars(vec).update(attributes)
    return vec


def refuse(words, function):
    with pytest.raises(gym.error.Error, match=words) as caught:
        make(function)
    assert "\n" not in str(caught.value)


NOT_NUMBERS = {
    "None": lambda x: np.where(x == x, None, None),
    "text": lambda x: x.astype(str),
    "complex": lambda x: x + 0j,
    "dates": lambda x: x.astype(int).astype("datetime64[s]"),
    "nothing": lambda x: None,
}
NAMES = {
    "obs": "observation",
    "rewards": "reward",
    "terminations": "termination",
    "truncations": "truncation",
    "success": r"info\['success'\]",
}


@pytest.mark.parametrize("part, name", NAMES.items())
def test_arrays_that_are_refused(part, name):
    for change in NOT_NUMBERS.values():
        refuse(f"each {name} of the environments must be a number", lambda change=change: spoilt(part, change))
    for change in (lambda x: x[:, None], lambda x: np.concatenate([x, x]), lambda x: x[:1], lambda x: 1):
        refuse(f"{name}s of all tasks have shape .*, not ", lambda change=change: spoilt(part, change))
    for number in (0.5, 2) if part in ("terminations", "truncations") else ():
        refuse("must be a boolean", lambda number=number: spoilt(part, lambda x: np.full(2, number)))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda infos: infos.pop("final_obs", 0), r"infos\['final_obs'\] must hold the last observation"),
        (lambda infos: infos.update(final_obs=np.zeros((1, 2))), r"infos\['final_obs'\] must hold"),
        (lambda infos: infos.update(final_obs=np.zeros((2, 3))), "each last observation .* must be a number"),
        (lambda infos: infos.update(final_info={}), r"an episode of task task-0 ended without info\['success'\]"),
        (lambda infos: infos.update(final_info=np.full(2, {"success": 0})), r"infos\['final_info'\] must be a dict"),
    ],
)
def test_ends_of_episodes_that_lack_something_are_refused(change, words):
    refuse(words, lambda: Plain(infos=lambda infos: (change(infos), infos)[1]))


def test_a_last_observation_in_the_array_of_the_next_one_is_refused():
    class Reusing(Plain):
        def step(self, actions):
            obs, *rest, infos = super().step(actions)
            return obs, *rest, infos | ({"final_obs": obs} if "final_obs" in infos else {})

    refuse("task task-0 starts an episode in the array of its last observation", Reusing)


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda: None, "returned NoneType, not a gymnasium.vector.VectorEnv"),
        (lambda: Counter(), "returned Counter, not a gymnasium.vector.VectorEnv"),
        (lambda: wrappers.vector.NormalizeReward(Plain()), "NormalizeReward is not supported"),
        (lambda: plain_with(metadata={}), "SAME_STEP"),
        (lambda: plain_with(metadata={"autoreset_mode": AutoresetMode.NEXT_STEP}), "SAME_STEP"),
        (lambda: Plain(gym.spaces.Box(-np.inf, 1, (1,))), "bounded, real actions"),
        (lambda: Plain(gym.spaces.Box(0, 9, (1,), np.int64)), "bounded, real actions"),
        (lambda: Plain(gym.spaces.Discrete(3)), "flat Box of actions"),
        (lambda: plain_with(single_observation_space=gym.spaces.Box(0, 1, (3, 3))), "flat Box of observations"),
        (lambda: plain_with(single_observation_space=gym.spaces.Dict()), "flat Box of observations"),
    ],
)
def test_environments_that_are_refused(function, words):
    refuse(words, function)


@pytest.mark.parametrize(
    "metadata, words",
    [
        ({"tasks": ["a"]}, r"metadata\['tasks'\] must be 2 different names"),
        ({"tasks": ["a", "a"]}, r"metadata\['tasks'\] must be 2 different names"),
        ({"tasks": "ab"}, r"metadata\['tasks'\] must be a list of names, not 'ab'"),
        ({"tasks": ["a", ""]}, "must be a list of names"),
        ({"tasks": ["a", "b\nc"]}, "must be printable"),
        ({"metrics": "height"}, "must be a list of names, not 'height'"),
        ({"metrics": ["success"]}, "different names, other than .* success"),
    ],
)
def test_names_that_are_refused(metadata, words):
    refuse(words, lambda: plain_with(metadata=SAME_STEP | metadata))


def in_place(where):
    """A task that returns its state itself and changes it: in every step, in a reset alone, or in its info."""
    state, seen, told = np.zeros(1, np.float32), [], {}

    def overwrite(obs):
        state[:] = obs
        return state

    def remember(obs):
        seen.append(obs)
        return obs

    def forget(returned):
        for obs in seen:
            obs.fill(-1)
        return returned

    changes = {"step": {"obs": overwrite}, "reset": {"obs": remember, "reset": forget}}
    return Counter(**changes.get(where, {"info": lambda info: told.update(info) or told}))


def bytes_that_get_fractions():
    """AsyncVectorEnv would cut off what follows the point."""
    env = Counter(obs=lambda x: x.astype(float) / 4)
    env.observation_space = gym.spaces.Box(0, 9, (1,), np.uint8)
    return env


REFUSED_TASKS = [
    (lambda: in_place("step"), "task task-0 changes the observation that it has returned"),
    (lambda: in_place("reset"), "task task-0 changes the observation that it has returned"),
    (lambda: in_place("info"), "task task-0 returns one info again and again"),
    (bytes_that_get_fractions, r"task-0 is float32 \[1\], but its space is uint8 \[1\]"),
    (lambda: wrappers.TimeLimit(wrappers.NormalizeReward(Counter()), 9), "NormalizeReward is not supported"),
    (lambda: wrappers.NormalizeObservation(Counter()), "NormalizeObservation is not supported"),
    # Results of older versions of Gym, or none.
    (lambda: Counter(reset=lambda returned: returned[0]), "reset .* observation, info$"),
    (lambda: Counter(reset=lambda returned: (returned[0], None)), "reset .* observation, info$"),
    (lambda: Counter(step=lambda returned: returned[:3] + returned[4:]), "step .* observation, reward, terminated"),
    (lambda: Counter(step=lambda returned: None), "step .* observation, reward, terminated"),
    (
        lambda: Counter(info=lambda info: {"success": 255 * info["success"]}),
        "of task task-0 is 255, not from 0",
    ),
    (lambda: Counter(info=lambda info: {"success": -1}), "of task task-0 is -1, not from 0"),
    (lambda: Counter(info=lambda info: {} if info["success"] else info), r"task-0 ended without info\['success'\]"),
]
REFUSED_TASKS += [  # Gymnasium would take some of them for booleans and numbers
    (lambda end=end: Counter(terminated=lambda _: end), "terminated must be a boolean, but is .* in task task-0")
    for end in (None, 0.5, "no", np.array([True]))
]
REFUSED_TASKS += [
    (lambda reward=reward: Counter(reward=lambda _: reward), "reward must be a number, but is .* in task task-0")
    for reward in (None, "1.5", 1j, np.array([1.0]))
]
REFUSED_TASKS += [
    (lambda obs=obs: Counter(obs=lambda _: obs), "an observation of task task-0 is .*, but its space is float32")
    for obs in (np.zeros(2), np.float32(0), None, "a")
]


@both_kinds
@pytest.mark.parametrize("task, words", REFUSED_TASKS)
def test_tasks_that_are_refused(cls, task, words):
    with pytest.raises(gym.error.Error, match=words):
        make_tasks(task, task, cls=cls)


def test_success_of_some_tasks_alone_is_refused():
    """Whichever of them ends first."""
    for silent, telling in ((3, 5), (5, 3), (2, 900)):
        tasks = [lambda n=telling: Counter(n), lambda n=silent: Counter(n, info=lambda _: {})]
        with pytest.raises(gym.error.Error, match=r"an episode of task task-1 ended without info\['success'\]"):
            make_tasks(*tasks)


def test_a_metric_that_is_missing_is_refused():
    with pytest.raises(gym.error.Error, match=r"task-0 ended without info\['height'\]"):
        make_tasks(lambda: Counter(), metadata={"metrics": ["height"]})


# Errors of a user's own code, of which what the scripts tell in one line must be told apart


def broken(error, place, left):
    """A task that raises an error in one of its methods, at the `left`-th call of it."""
    env, calls = Counter(50, "rgb_array"), itertools.count(1)
    method = getattr(env, place)

    def fail(*args, **kwargs):
        if next(calls) == left:
            raise error
        return method(*args, **kwargs)

    setattr(env, place, fail)
    return env


FAULTS = [(FileNotFoundError, place, 1) for place in ("reset", "step", "render")]
FAULTS += [(kind, "step", 20) for kind in (BrokenPipeError, EOFError, FloatingPointError, gym.error.ResetNeeded)]


@both_kinds
@pytest.mark.parametrize("kind, place, left", FAULTS)
@pytest.mark.filterwarnings("ignore:.*ERROR")  # AsyncVectorEnv's
def test_an_error_of_the_environment_keeps_its_traceback(cls, kind, place, left):
    tasks = lambda: Counter(50, "rgb_array"), lambda: broken(kind("robot.xml"), place, left)
    with pytest.raises(RuntimeError, match=f"the environment raised {kind.__name__}: robot.xml") as raised:
        make_tasks(*tasks, cls=cls, render_mode="rgb_array")
    assert type(raised.value.__cause__) is kind


def test_an_error_of_a_module_or_function_keeps_its_traceback(tmp_path, monkeypatch):
    """The modules lie in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text, kind, words in (
        ("lacking", "import no_such_module", ModuleNotFoundError, "no_such_module"),
        ("wrong", "def make(seed, vectorization, render_mode): return [][seed]", IndexError, "list index"),
        ("unlucky", "open('robot.xml')", RuntimeError, "the environment raised FileNotFoundError: .*robot.xml"),
    ):
        Path(f"{name}.py").write_text(text)
        with pytest.raises(kind, match=words):
            envs.make_vec(f"{name}:make", 1)
    with pytest.raises(RuntimeError, match="the environment raised NameNotFound: .*Robot"):
        make(lambda: gym.make_vec("Robot-v0"))


# Numbers that are not finite


@pytest.mark.parametrize("number", [np.nan, -1e39])
@pytest.mark.parametrize("part", ["obs", "rewards", "last observation", "success", "action"])
def test_numbers_that_single_precision_cannot_hold(part, number):
    def spoil(values):
        values = np.array(values, dtype=float)
        values[1] = number
        return values

    vec = MultiTaskEnv(Plain() if part == "action" else spoilt(part, spoil), ("good", "bad"), 1)
    name = {"obs": "observation", "rewards": "reward", "success": r"info\['success'\]"}.get(part, part)
    said = pytest.raises(FloatingPointError, match=f"a non-finite {name} in task bad")
    with said if part == "obs" else contextlib.nullcontext():
        vec.reset()
    actions = np.zeros((2, 1))
    with said:
        for _ in range(5):
            vec.step(spoil(actions) if part == "action" else actions)


# Drawing


@both_kinds
def test_an_environment_that_cannot_draw_is_refused_at_once(cls):
    with pytest.raises(gym.error.Error, match="user_function cannot render: its render_mode is None"):
        make_tasks(lambda: Counter(), cls=cls, render_mode="rgb_array")


@pytest.mark.parametrize(
    "pictures, words",
    [
        (None, "not 0 of nothing"),
        ([np.zeros((8, 8, 3), np.uint8)], r"not 1 of uint8 \[8, 8, 3\]"),
        ([np.zeros((8, 8, 4), np.uint8)] * 2, r"not 2 of uint8 \[8, 8, 4\]"),
        ([np.zeros((8, 8, 3), np.uint8), None], r"not 2 of .*object \[\]"),
        ([np.zeros((8, i, 3), np.uint8) for i in (8, 9)], r"not 2 of uint8 \[8, 8|9, 3\], uint8"),
    ],
)
def test_pictures_that_are_refused(pictures, words):
    def function():
        vec = Plain()
        vec.render_mode, vec.render = "rgb_array", lambda: pictures
        return vec

    with pytest.raises(gym.error.Error, match=f"render must return 2 pictures, .*{words}"):
        make(function, render_mode="rgb_array")


def run_python(code, **environ):
    folder = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **environ}, capture_output=True, text=True
    )


@pytest.mark.parametrize("backend", ["egll", "disable"])
def test_mujoco_gl_of_another_machine(backend):
    """Nobody minds unless something is to be drawn that needs OpenGL; what it is set to stays."""
    done = run_python(
        "import os, envs, gymnasium\n"
        "print(envs.make_vec('PointReach-v0', 1, render_mode='rgb_array').reset()[0].shape, os.environ['MUJOCO_GL'])\n"
        "try: envs.make_vec('Maze-v0', 1, render_mode='rgb_array')\n"
        "except gymnasium.error.Error as error: print(error)",
        MUJOCO_GL=backend,
    )
    first, second = done.stdout.splitlines()
    assert first == f"(5, 2) {backend}" and not done.stderr
    assert second.startswith(f"rendering needs OpenGL, and MUJOCO_GL={backend} does not work here")


def test_drawing_whatever_pyopengl_was_told(opengl):
    done = run_python(
        "import envs\n"
        "vec = envs.make_vec('Maze-v0', 1, render_mode='rgb_array')\n"
        "vec.reset()\n"
        "print(vec.render()[9].std() > 10)\n"
        "vec.close()",
        PYOPENGL_PLATFORM="glx",
        MUJOCO_GL="",
    )
    assert (done.stdout, done.stderr) == ("True\n", "")


# Evaluation


class Actor:
    """Does nothing; in turn t the policies `policies[t]` do it, the last of them for ever, or `policies` always."""

    def __init__(self, policies, action=0.0):
        self.turns, self.turn, self.action, self.lengths = np.atleast_2d(policies), 0, action, []

    def act(self, obs, episode_lengths):
        self.policies = torch.as_tensor(self.turns[min(self.turn, len(self.turns) - 1)])
        self.turn += 1
        self.lengths.append(episode_lengths.tolist())
        return np.full((len(obs), 1), self.action)


def test_evaluation_of_the_first_episodes():
    """The fast task's later episodes, which are shorter, do not count, nor who acted in them."""

    def get_shorter():
        env = Counter(4)
        lengths = iter([4, 4] + [2] * 100)
        env.reset = lambda **kwargs: (setattr(env, "length", next(lengths)), Counter.reset(env, **kwargs))[1]
        return env

    vec = MultiTaskEnv(SyncVectorEnv([get_shorter, lambda: Counter(10)], **SAME_STEP), ("fast", "slow"), 1)
    actor = Actor([[0, 1]] * 6 + [[1, 1]] * 9 + [[1, 0]])
    rows = envs.evaluate(vec, actor, 2, seed=1)
    assert actor.lengths == [[t % 4 if t < 8 else t % 2, t % 10] for t in range(20)]
    assert list(rows.columns) == ["task", *vec.metrics, "acted/fast", "acted/slow"]
    assert rows.iloc[0].tolist() == ["fast", 1, 4, 4, 6 / 8, 2 / 8]
    assert rows.iloc[1].tolist() == ["slow", 1, 10, 10, 5 / 20, 15 / 20]


def test_an_evaluation_starts_new_episodes_by_its_seed():
    vec = envs.make_vec("PointReach-v0", 1)
    vec.reset()
    vec.step(np.ones((5, 2)))

    class Ahead(Actor):
        def act(self, obs, episode_lengths):
            self.first = getattr(self, "first", obs.tolist())
            super().act(obs, episode_lengths)
            return np.ones((5, 2))

    actors = [Ahead(np.arange(5)) for _ in range(3)]
    rows = [envs.evaluate(vec, actor, 2, seed) for actor, seed in zip(actors, ([1, 2], [1, 2], [1, 3]), strict=True)]
    assert rows[0].equals(rows[1]) and not rows[0].equals(rows[2])
    assert actors[0].first == actors[1].first == vec.reset(seed=[1, 2])[0].tolist() != actors[2].first
    assert rows[0]["episodic_length"].tolist() == [50] * 5


def test_a_stopped_evaluation_has_no_rows():
    stop = []

    class Stopping(Actor):
        def act(self, obs, episode_lengths):
            stop.extend([15] * (self.turn == 1))
            return super().act(obs, episode_lengths)

    actor = Stopping([0])
    assert envs.evaluate(make_tasks(lambda: Counter(900)), actor, 1, 1, stop=stop) is None and actor.turn == 2


def test_an_episode_that_never_ends(monkeypatch):
    monkeypatch.setattr(envs.multi_task, "MAX_EVALUATION_STEPS", 20)
    vec = make_tasks(lambda: Counter(), lambda: Counter(5), lambda: Counter(10**9))
    with pytest.raises(
        gym.error.Error, match="in 20 steps of evaluation, task task-2 ended 0 of 4 episodes.*TimeLimit"
    ):
        envs.evaluate(vec, Actor([0, 1, 2]), 4, 1)
    assert len(envs.evaluate(make_tasks(lambda: Counter(5)), Actor([0]), 4, 1)) == 1  # in its last turn


def test_table():
    rows = pd.DataFrame(
        [["left", 1.0, -3.14159, 0.1, 0.25, 0.75], ["right", 0.5, 100.0, 0.4, np.nan, np.nan]],
        columns="task success_rate episodic_return contacted/wall acted/left acted/right".split(),
    )
    assert [line.split() for line in envs.format_table(rows).splitlines()] == [
        ["task", "success", "return", "own", "policy"],
        ["left", "1.00", "-3.14", "0.25"],
        ["right", "0.50", "100.00", "-"],
        ["mean", "0.75", "48.43", "0.25"],
    ]
    rows["success_rate"] = np.nan
    assert [line.split()[1] for line in envs.format_table(rows).splitlines()[1:]] == ["-"] * 3


# Videos


def read_video(path):
    """Its frames [T, H, W, 3], and frames per second."""
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]), meta["fps"]


@both_kinds
def test_a_video_shows_the_first_episode_of_every_task_and_who_acts(cls, tmp_path):
    tasks = [lambda n=n: Counter(n, render_mode="rgb_array") for n in (3, 25)]
    vec = make_tasks(*tasks, cls=cls, render_mode="rgb_array")
    path = tmp_path / "videos" / "own.mp4"
    envs.evaluate(vec, Actor([[0, 0]] * 5 + [[0, 1]]), 2, 1, path)
    frames, fps = read_video(path)
    assert len(frames) == 25 and fps == 10
    left, right = np.split(frames.astype(int), 2, axis=2)
    brightness = [tile[:, 40:90, 10:50].mean((1, 2, 3)) for tile in (left, right)]
    assert np.allclose(brightness[0], [0, 10, *[20] * 23], atol=4)  # its last picture stands still
    assert np.allclose(brightness[1], 10 * np.arange(25), atol=4)
    # Above, the names of the task and of the policy that acts, whose colour the border has.
    (title, policy), (other_title, _) = ((tile[:, 4:20, 4:-4], tile[:, 21:37, 4:-4]) for tile in (right, left))
    assert np.abs(title[4] - title[5]).max() < 60 and np.abs(title[4] - other_title[4]).max() > 100
    assert np.abs(policy[4] - policy[5]).max() > 100
    colors = np.array([(153, 31, 31), (51, 255, 255)])  # of both policies: dark red, light cyan
    for side in (right[:, 10:-10, 1], right[:, 10:-10, -2], right[:, 1, 10:-10], right[:, -2, 10:-10]):
        assert np.abs(np.median(side, axis=1) - colors[[0] * 5 + [1] * 20]).max() < 30
    vec.close()


@both_kinds
def test_tasks_that_draw_who_acts_are_told(cls, tmp_path):
    """Also through wrappers, if they have the attribute."""
    tasks = [lambda: wrappers.TimeLimit(Counter(4, render_mode="rgb_array"), 9)] * 2
    turns = [[0, 1], [1, 0], [1, 1], [0, 0]]
    told = make_tasks(*tasks, cls=cls, metadata={"attributes": ("acting_policy",)}, render_mode="rgb_array")
    others = make_tasks(*tasks, cls=cls, render_mode="rgb_array")
    for vec, expected in ((told, ([0, 1, 1, 0], [1, 0, 1, 0])), (others, ([None] * 4,) * 2)):
        envs.evaluate(vec, Actor(turns), 1, 1, tmp_path / "own.mp4")
        acted = vec.unwrapped.get_attr("acted")
        assert tuple(numbers[-4:] for numbers in acted) == expected
        vec.close()
