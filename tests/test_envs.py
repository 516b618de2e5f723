"""What every environment keeps to: spaces, time limit, seeds, copies that go on, pictures, all tasks side by side."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs

SIZES = {  # numbers of tasks, observed numbers, numbers of an action, steps per episode, minimum rewards of the tasks
    "PointReach-v0": (5, 2, 2, 50, [-50] * 4 + [-1]),
    "PointReach2-v0": (2, 2, 2, 50, [-50, -1]),
    "PointReach9-v0": (9, 2, 2, 50, [-50] * 8 + [-1]),
    "MultistageReacher-v0": (5, 15, 6, 200, [-5] * 5),
    "Maze-v0": (10, 4, 2, 600, [-1] * 10),
    "Walker2dMT4-v0": (4, 17, 6, 1000, [0] * 4),
    "KitchenMT10-v0": (10, 60, 9, 140, [-20] * 10),
    "MetaWorldCDS-v0": (4, 21, 4, 500, [0] * 4),
    "MetaWorldMT10-v3": (10, 39, 4, 500, [0] * 10),
    "MetaWorldMT25-v3": (25, 39, 4, 500, [0] * 25),
    "MetaWorldMT50-v3": (50, 39, 4, 500, [0] * 50),
}
# Meta-World's sets share their tasks; MT10 stands for them where every task is tried, with some whose environments keep
# views into the simulation's arrays or leave traces in the model.
TRIED = [name for name in SIZES if name not in ("MetaWorldMT25-v3", "MetaWorldMT50-v3")]
TRIED_TASKS = [(name, task) for name in TRIED for task in range(SIZES[name][0])]
MT50 = envs.TASKS["MetaWorldMT50-v3"]
TRIED_TASKS += [
    ("MetaWorldMT50-v3", MT50.index(name))
    for name in ("basketball-v3", "sweep-into-v3", "door-lock-v3", "dial-turn-v3")
]
every_env = pytest.mark.parametrize("env_id", SIZES)
every_task = pytest.mark.parametrize("env_id, task", TRIED_TASKS)


def make(env_id: str, task: int, **kwargs) -> gym.Env:
    return gym.make(f"qmp/{env_id}", task=task, disable_env_checker=True, **kwargs)


def step_on(env: gym.Env, actions_seed: int = 7) -> list:
    """Everything that the next twenty steps return."""
    actions = np.random.default_rng(actions_seed).uniform(-1, 1, (20, *env.action_space.shape)).astype(np.float32)
    return [(obs.tolist(), *rest) for obs, *rest in map(env.step, actions)]


def roll_out(env: gym.Env, **reset) -> list:
    """Everything that a reset and the next twenty steps return."""
    return [env.reset(**reset)[0].tolist(), *step_on(env)]


@every_task
def test_check_env(env_id, task):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations
        check_env(make(env_id, task).unwrapped, skip_render_check=True)


def test_no_environment_is_left_out():
    assert set(SIZES) == set(envs.TASKS)


@every_env
def test_sizes(env_id):
    tasks, observed, actions, steps, _ = SIZES[env_id]
    env = make(env_id, 0)
    bound = 1 if env_id.startswith("PointReach") else np.inf
    assert env.observation_space == gym.spaces.Box(-bound, bound, (observed,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (actions,), np.float32)
    assert len(set(envs.TASKS[env_id])) == tasks and env.spec.max_episode_steps == steps


@every_env
def test_bad_task(env_id):
    for task in (-1, 50, 0.5, "1"):
        with pytest.raises(ValueError, match=f"from 0 to {SIZES[env_id][0] - 1}, got {task!r}") as error:
            make(env_id, task)
        assert "\n" not in str(error.value)


@every_task
def test_a_seed_decides_all_that_follows(env_id, task):
    env, fresh = make(env_id, task), make(env_id, task)
    first, second = roll_out(env, seed=3), roll_out(env)
    assert first[0] != second[0]
    roll_out(env, seed=4)  # leaves another state behind
    np.random.seed(task)  # the global generator is not used
    state = pickle.dumps(np.random.get_state())
    assert roll_out(env, seed=3) == first == roll_out(fresh, seed=3) and roll_out(env) == second
    assert roll_out(env, seed=4)[0] != first[0]
    assert pickle.dumps(np.random.get_state()) == state


def test_another_process_gets_the_same():
    code = "from test_envs import *\nfor name in TRIED: print(roll_out(make(name, 1), seed=5))"
    folder = Path(__file__).parent
    code = f"import sys; sys.path[:0] = {[str(folder), str(folder.parent)]}\n{code}"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [str(roll_out(make(name, 1), seed=5)) for name in TRIED]


@pytest.mark.parametrize(
    "make_copy", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["deepcopy", "pickle"]
)
@every_task
def test_copies_go_on_as_the_original(env_id, task, make_copy):
    """From the middle of an episode, after a reset with a seed and after one without."""
    env = make(env_id, task)
    env.reset(seed=0)
    step_on(env, 1)
    twin = make_copy(env)
    expected = step_on(twin)  # the copy first: it must not move the original
    assert step_on(env) == expected
    assert len({tuple(obs) for obs, *_ in expected}) == 20
    for reset in ({"seed": 3}, {}):
        expected = roll_out(twin, **reset)
        assert roll_out(env, **reset) == expected


@pytest.mark.parametrize("env_id", TRIED)
def test_pictures(env_id, opengl):
    """Each environment draws what is its own, also after another has been closed, and goes on as if it had not.

    So does a copy.
    """
    drawn, other = (make(env_id, task, render_mode="rgb_array") for task in (0, 1))
    plain = make(env_id, 0)
    for env, seed in ((drawn, 0), (plain, 0), (other, 1)):
        env.reset(seed=seed)
    frames = [drawn.render(), other.render()]
    assert all(frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8 for frame in frames)
    assert min(frame.std() for frame in frames) > 10 and not np.array_equal(*frames)
    twin = copy.deepcopy(drawn)
    assert np.array_equal(drawn.render(), frames[0]) and np.array_equal(other.render(), frames[1])
    assert step_on(drawn) == step_on(plain) and not np.array_equal(drawn.render(), frames[0])
    drawn.close()
    assert np.array_equal(other.render(), frames[1]) and np.array_equal(twin.render(), frames[0])
    other.close(), twin.close()
    assert plain.render() is None


# All tasks side by side


@every_env
def test_all_tasks_side_by_side(env_id):
    """With starts of their own, which the seed decides."""
    tasks, observed, actions, _, min_rewards = SIZES[env_id]
    vec = envs.make_vec(env_id, seed=1)
    assert vec.tasks == envs.TASKS[env_id] and list(vec.min_rewards) == min_rewards
    obs, _ = vec.reset()
    assert obs.shape == (tasks, observed) and obs.dtype == np.float32 and vec.single_action_space.shape == (actions,)
    assert len({tuple(row) for row in obs}) == tasks
    assert np.array_equal(obs, vec.reset(seed=1)[0]) and not np.array_equal(obs, vec.reset(seed=2)[0])
    vec.close()


@pytest.mark.parametrize("env_id", TRIED)
def test_async_equals_sync(env_id):
    sync, asynchronous = (envs.make_vec(env_id, 3, kind) for kind in ("sync", "async"))
    for reset in ({}, {"seed": 7}):
        assert np.array_equal(sync.reset(**reset)[0], asynchronous.reset(**reset)[0])
        for actions in np.random.default_rng(0).uniform(-1, 1, (20, *sync.action_space.shape)):
            *row, infos = sync.step(actions)
            *other, other_infos = asynchronous.step(actions)
            assert all(map(np.array_equal, row, other))
            assert np.array_equal(infos["real_next_obs"], other_infos["real_next_obs"])
    asynchronous.close()


def test_a_choice_of_meta_worlds_tasks():
    """Each has the goals and episodes that it has in any other set."""
    names = ("push-v3", "dial-turn-v3")
    vec = envs.make_vec(f"MetaWorld:{','.join(names)}", 1)
    assert vec.tasks == names and len(vec.min_rewards) == 2
    for env, name in zip(vec.unwrapped.envs, names, strict=True):
        assert roll_out(env, seed=2) == roll_out(make("MetaWorldMT50-v3", MT50.index(name)), seed=2)


def test_bad_vectorization():
    with pytest.raises(gym.error.Error, match="vectorization must be sync or async, not 'asnyc'"):
        envs.make_vec("PointReach-v0", 1, "asnyc")


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("PointReech-v0", "did you mean 'PointReach-v0'"),
        ("HalfCheetah-v5", "unknown environment 'HalfCheetah-v5'; allowed: "),
        ("MetaWorld:reech-v3", "did you mean 'reach-v3'"),
        ("MetaWorld:reach-v3,", "unknown Meta-World task ''"),
        ("MetaWorld:reach-v3,reach-v3", "named twice"),
        ("no_such_module:make", "no_such_module:make: there is no module 'no_such_module'"),
        ("json.no_such_module:make", "there is no module 'json.no_such_module'"),
        (".json:make", "'.json' is not the name of a module"),
        ("json:", "the module has no function ''"),
        ("json:__name__", "the module has no function '__name__'"),
    ],
)
def test_unknown_environment(env_id, words):
    with pytest.raises(gym.error.Error, match=words) as error:
        envs.make_vec(env_id, 1)
    assert "\n" not in str(error.value)
