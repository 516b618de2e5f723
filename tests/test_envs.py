"""What every environment keeps to: spaces, time limit, seeds, pictures, all tasks side by side."""

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs import kitchen

SIZES = {  # tasks, observed numbers, numbers of an action, steps per episode, minimum rewards
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
# One task stands for each family; of Meta-World also some whose environments keep views into the
# simulation's arrays or leave traces in the model.
FAMILIES = [name for name in SIZES if "MT25" not in name and "MT50" not in name]
TRIED = [(name, 1) for name in FAMILIES]
MT50 = list(envs.make_tasks("MetaWorldMT50-v3"))
TRIED += [("MetaWorldMT50-v3", MT50.index(f"{name}-v3")) for name in ("sweep-into", "dial-turn")]
KITCHEN_NOISE = [1e-2] * 9 + [5e-4] * 2 + [5e-5] * 6 + [5e-4] * 3 + [1e-2] * 3 + [5e-4] * 3
KITCHEN_NOISE += [1e-2] * 3 + [5e-4]


def make(env_id, task, **kwargs):
    return [*envs.make_tasks(env_id, **kwargs).values()][task]()


def step_on(env):
    """Everything that the next twenty steps return."""
    actions = np.random.default_rng(7).uniform(-1, 1, (20, *env.action_space.shape))
    return [(obs.tolist(), *rest) for obs, *rest in map(env.step, actions.astype(np.float32))]


def roll_out(env, **reset):
    """Everything that a reset and the next twenty steps return."""
    return [env.reset(**reset)[0].tolist(), *step_on(env)]


@pytest.mark.parametrize("env_id", SIZES)
def test_sizes(env_id):
    tasks, observed, actions, steps, _ = SIZES[env_id]
    env = make(env_id, 0)
    bound = 1 if env_id.startswith("PointReach") else np.inf
    assert env.observation_space == gym.spaces.Box(-bound, bound, (observed,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (actions,), np.float32)
    assert len(envs.make_tasks(env_id)) == tasks and env._max_episode_steps == steps
    assert set(SIZES) == set(envs.ENVIRONMENTS)


@pytest.mark.parametrize("env_id, task", TRIED)
def test_a_seed_decides_all_that_follows(env_id, task):
    env, fresh = make(env_id, task), make(env_id, task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations
        check_env(env.unwrapped, skip_render_check=True)
    first, second = roll_out(env, seed=3), roll_out(env)
    assert first[0] != second[0]
    assert len({tuple(obs) for obs, *_ in first[1:]}) == 20
    roll_out(env, seed=4)  # leaves another state behind
    np.random.seed(task)  # the global generator is not used
    state = pickle.dumps(np.random.get_state())
    assert roll_out(env, seed=3) == first == roll_out(fresh, seed=3) and roll_out(env) == second
    assert roll_out(env, seed=4)[0] != first[0]
    assert pickle.dumps(np.random.get_state()) == state


@pytest.mark.parametrize(
    "env_id, task, size, center, bound",
    [
        ("Maze-v0", 5, 2, [1.7, 2.8], [0.1]),
        ("MultistageReacher-v0", 0, 12, [0, 0, 0, 0, -2.8, *[0] * 7], [0.01] * 6 + [0.001] * 6),
        ("KitchenMT10-v0", 0, 30, kitchen.START, KITCHEN_NOISE),
        ("PointReach-v0", 0, 2, [0, 0], [0.05]),
    ],
)
def test_starts_are_uniform(env_id, task, size, center, bound):
    env = make(env_id, task)
    starts = np.stack([env.reset(seed=seed)[0][:size] for seed in range(300)])
    noise = (starts - center) / bound
    assert np.all(np.abs(noise) <= 1 + 2e-3)  # rounding of single precision
    assert np.all(noise.min(0) < -0.95) and np.all(noise.max(0) > 0.95)
    assert np.all(np.abs(noise.mean(0)) < 0.15)
    assert noise.std(0) == pytest.approx(np.full(size, 1 / 3**0.5), rel=0.1)


@pytest.mark.parametrize("env_id", FAMILIES)
def test_pictures(env_id, opengl):
    """Each draws what is its own, also after another is closed, and goes on as if it had not."""
    drawn, other = (make(env_id, task, render_mode="rgb_array") for task in (0, 1))
    plain = make(env_id, 0)
    for env, seed in ((drawn, 0), (plain, 0), (other, 1)):
        env.reset(seed=seed)
    frames = [drawn.render(), other.render()]
    assert all(frame.shape[2:] == (3,) and frame.dtype == np.uint8 for frame in frames)
    assert min(frame.std() for frame in frames) > 10 and not np.array_equal(*frames)
    assert np.array_equal(drawn.render(), frames[0]) and np.array_equal(other.render(), frames[1])
    assert step_on(drawn) == step_on(plain) and not np.array_equal(drawn.render(), frames[0])
    drawn.close()
    assert np.array_equal(other.render(), frames[1])
    other.close()
    assert plain.render() is None


@pytest.mark.parametrize("env_id", [name for name in FAMILIES if "MT10-v3" not in name])
def test_all_tasks_side_by_side(env_id):
    """With starts of their own, which the seed decides; the same in processes of their own."""
    tasks, observed, actions, _, min_rewards = SIZES[env_id]
    sync, other = (envs.make_vec(env_id, kind) for kind in ("sync", "async"))
    assert sync.tasks == tuple(envs.make_tasks(env_id)) == other.tasks
    assert list(sync.min_rewards) == min_rewards == list(other.min_rewards)
    obs = sync.reset(seed=1)[0]
    assert obs.shape == (tasks, observed) and obs.dtype == np.float32
    assert sync.single_action_space.shape == (actions,)
    assert len({tuple(row) for row in obs}) == tasks
    assert np.array_equal(obs, other.reset(seed=1)[0])
    assert not np.array_equal(obs, sync.reset(seed=2)[0])
    assert np.array_equal(obs, sync.reset(seed=1)[0])
    for actions in np.random.default_rng(0).uniform(-1, 1, (20, *sync.action_space.shape)):
        *row, infos = sync.step(actions)
        *other_row, other_infos = other.step(actions)
        assert all(map(np.array_equal, row, other_row))
        assert np.array_equal(infos["real_next_obs"], other_infos["real_next_obs"])
    other.close()


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("PointReech-v0", "unknown environment 'PointReech-v0'; .*PointReach-v0, PointReach2-v0"),
        ("MetaWorld:reech-v3", "unknown Meta-World task 'reech-v3'; known are .*reach-v3"),
        ("no_such_module:make", "no_such_module:make: No module named 'no_such_module'"),
        ("json:nothing", "the module has no function 'nothing'"),
    ],
)
def test_unknown_environment(env_id, words):
    with pytest.raises(gym.error.Error, match=words) as error:
        envs.make_vec(env_id)
    assert "\n" not in str(error.value)
