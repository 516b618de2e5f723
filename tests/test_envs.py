"""make_vec: seeding, autoreset, users' functions; and PointReach."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

import envs
from envs import pointreach
from envs.pointreach import PointReach


class Drift(gym.Env):
    """A user's environment: float64 observations, actions in [-2, 2], task i ends after 2 + i steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)
    metadata = {"metrics": ("distance",)}

    def __init__(self, task):
        self.task, self.actions, self.sign = task, [], 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(size=1), {}

    def step(self, action):
        self.actions.append(float(action[0]))
        self.steps += 1
        obs = np.array([100.0 * self.task + self.steps])
        ended = self.steps == 2 + self.task
        return (
            obs,
            1.0,
            ended and self.task == 0,
            False,
            {"success": float(ended), "distance": float(self.sign * self.steps)},
        )


def make_drift(seed, vectorization, render_mode):
    """Three tasks: the first terminates, the others are truncated."""
    thunks = [lambda i=i: TimeLimit(Drift(i), 2 + i) for i in range(3)]
    return SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)


def make_next_step(seed, vectorization, render_mode):
    return SyncVectorEnv([lambda: Drift(0)])


def make_unbounded(seed, vectorization, render_mode):
    def thunk():
        env = Drift(0)
        env.action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        return env

    return SyncVectorEnv([thunk], autoreset_mode=AutoresetMode.SAME_STEP)


def make_images(seed, vectorization, render_mode):
    def thunk():
        env = Drift(0)
        env.observation_space = gym.spaces.Box(0, 1, (3, 3), np.float32)
        return env

    return SyncVectorEnv([thunk], autoreset_mode=AutoresetMode.SAME_STEP)


def make_unequal(seed, vectorization, render_mode):
    def thunk(size):
        env = Drift(0)
        env.observation_space = gym.spaces.Box(0, 1, (size,), np.float32)
        return env

    return SyncVectorEnv([lambda: thunk(1), lambda: thunk(2)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_without_copies(seed, vectorization, render_mode):
    return SyncVectorEnv([lambda: Drift(0)] * 2, autoreset_mode=AutoresetMode.SAME_STEP, copy=False)


def make_always_drawn(seed, vectorization, render_mode):
    vec = make_drift(seed, vectorization, render_mode)
    vec.render, vec.render_mode = lambda: [np.zeros((8, 8, 3), np.uint8)] * 3, "rgb_array"
    return vec


def make_undrawable(seed, vectorization, render_mode):
    def draw():
        raise RuntimeError("no screen")

    vec = make_drift(seed, vectorization, render_mode)
    vec.render, vec.render_mode = draw, render_mode
    return vec


class Faulty(gym.Wrapper):
    """Does what `fault` says instead of working."""

    def __init__(self, fault):
        super().__init__(TimeLimit(Drift(1), 3))
        self.fault, self.steps = fault, 0

    def step(self, action):
        obs, reward, *ends, info = self.env.step(action)
        self.steps += 1
        if self.fault == "raises":
            raise RuntimeError("the robot\nfell over")
        if self.fault == "no success":
            info = {"distance": 1.0}
        late = self.steps > 40
        obs = obs * np.nan if late and self.fault == "NaN observation" else obs
        return obs, np.inf if late and self.fault == "infinite reward" else reward, *ends, info

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return obs * np.nan if self.steps > 40 and self.fault == "NaN reset" else obs, info


def faulty(fault):
    thunks = [lambda: TimeLimit(Drift(1), 3), lambda: Faulty(fault)]
    return lambda *_: SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)


make_raising, make_no_success = faulty("raises"), faulty("no success")
make_nan, make_infinite = faulty("NaN observation"), faulty("infinite reward")
make_nan_reset = faulty("NaN reset")


def make_failing(seed, vectorization, render_mode):
    raise RuntimeError("no such robot")


def make_nothing(seed, vectorization, render_mode):
    return None


def rollout(vec, steps=60, seed=None):
    """Observations, rewards and ends of `steps` steps with fixed actions."""
    rng = np.random.default_rng(0)
    obs, _ = vec.reset(seed=seed)
    rows = [obs]
    for _ in range(steps):
        obs, rewards, terminations, truncations, _ = vec.step(rng.uniform(-1, 1, vec.action_space.shape))
        rows += [obs, rewards, terminations, truncations]
    return np.concatenate([np.ravel(row).astype(float) for row in rows])


def test_task_names():
    assert len(envs.TASKS["PointReach-v0"]) == 4
    assert len(envs.TASKS["MetaWorldMT10-v3"]) == 10 and "drawer-close-v3" in envs.TASKS["MetaWorldMT10-v3"]
    assert len(envs.TASKS["MetaWorldMT50-v3"]) == 50
    assert all(len(set(tasks)) == len(tasks) for tasks in envs.TASKS.values())


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_spaces_and_repeatability(vectorization):
    vec, again = (envs.make_vec("PointReach-v0", 3, vectorization) for _ in range(2))
    assert vec.single_observation_space.dtype == np.float32
    assert np.all(vec.single_action_space.low == -1) and np.all(vec.single_action_space.high == 1)
    first = rollout(vec)
    np.testing.assert_array_equal(first, rollout(again))
    assert not np.array_equal(first, rollout(vec))  # the episodes that follow are others
    np.testing.assert_array_equal(rollout(vec, seed=7), rollout(again, seed=7))
    vec.close()
    again.close()


def test_async_equals_sync():
    sync, asynchronous = (envs.make_vec("PointReach-v0", 3, kind) for kind in ("sync", "async"))
    np.testing.assert_array_equal(rollout(sync), rollout(asynchronous))
    asynchronous.close()


def test_tasks_and_seeds_differ():
    starts = [tuple(row) for seed in range(5) for row in envs.make_vec("PointReach-v0", seed).reset()[0]]
    assert len(set(starts)) == len(starts) == 20  # no task of one seed repeats a task of another


def test_same_step_autoreset():
    vec = envs.make_vec("PointReach-v0", 1)
    vec.reset()
    for step in range(1, 51):
        obs, _, terminations, truncations, infos = vec.step(np.ones((4, 2), np.float32))
        assert not terminations.any() and truncations.all() == (step == 50)
    assert np.all(np.abs(obs + 0.8) < 0.051)  # already the next start
    assert np.all(np.stack(infos["final_obs"])[:, 0] > -0.5)


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("PointReech-v0", "did you mean 'PointReach-v0'"),
        ("MetaWorldMT10-v2", "did you mean 'MetaWorldMT10-v3'"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("test_envs:no_such_function", "no_such_function"),
        ("test_envs:make_failing", "RuntimeError: no such robot"),
        ("test_envs:make_nothing", "not a gymnasium.vector.VectorEnv"),
        ("test_envs:make_next_step", "SAME_STEP"),
        ("test_envs:make_unbounded", "bounded"),
        ("test_envs:make_images", "flat Box of observations"),
        ("test_envs:make_unequal", "(?i)observation.space"),
        ("test_envs:make_raising", "(?s)first step of .* fails: RuntimeError: the robot.fell over"),
        ("test_envs:make_without_copies", "one array of observations again and again"),
        ("test_envs:make_no_success", r"info\['success'\] is missing"),
    ],
)
def test_bad_environments(env_id, words):
    with pytest.raises(ValueError, match=words):
        envs.make_vec(env_id, 1)


def test_bad_vectorization():
    with pytest.raises(ValueError, match="vectorization must be one of sync, async, not 'asnyc'"):
        envs.make_vec("PointReach-v0", 1, "asnyc")


def test_an_environment_that_cannot_draw_is_refused_at_once():
    with pytest.raises(ValueError, match="first step of .* fails: RuntimeError: no screen"):
        envs.make_vec("test_envs:make_undrawable", 1, render_mode="rgb_array")
    envs.make_vec("test_envs:make_undrawable", 1)


def test_custom_environment_gets_actions_in_its_own_range():
    vec = envs.make_vec("test_envs:make_drift", 1)
    assert vec.single_action_space.low == -1 and vec.single_action_space.high == 1
    vec.reset()
    vec.step(np.array([[0.5], [-1.0], [1.0]], np.float32))
    assert [env.unwrapped.actions[-1] for env in vec.unwrapped.envs] == [1.0, -2.0, 2.0]


@pytest.mark.filterwarnings("ignore:.*(infinity|render).*")
@pytest.mark.parametrize("env_id", ["PointReach-v0", "MetaWorldMT10-v3", "MetaWorldMT50-v3"])
def test_check_env(env_id):
    for task in range(len(envs.TASKS[env_id])):
        check_env(gym.make(f"qmp/{env_id}", task=task).unwrapped, skip_render_check=True)


def test_pointreach_check_env_with_rendering():
    check_env(gym.make("qmp/PointReach-v0", task=3, render_mode="rgb_array").unwrapped)


class Plain(gym.vector.VectorEnv):
    """A user's vector environment that is neither of Gymnasium's."""

    num_envs = 2
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_observation_space = gym.spaces.Box(-1, 1, (1,))
    single_action_space = gym.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(size=(2, 1)), {}

    def step(self, actions):
        return np.zeros((2, 1)), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {"success": np.zeros(2)}


def make_plain(seed, vectorization, render_mode):
    return Plain()


def test_other_vector_environments_get_the_seed_as_it_is():
    vec = envs.make_vec("test_envs:make_plain", 5)
    assert vec.reset()[0].tolist() == vec.reset(seed=5)[0].tolist() != vec.reset(seed=6)[0].tolist()


@pytest.mark.parametrize("task", [-1, 4, 0.5])
def test_pointreach_bad_task(task):
    with pytest.raises(ValueError, match="from 0 to 3"):
        PointReach(task)


def follow(env, points, render=False):
    """Walk through `points`; returns rewards and successes."""
    rewards, successes = [], []
    for point in points:
        for _ in range(50):
            way = np.array(point) - env.position
            if np.linalg.norm(way) < 0.02:
                break
            _, reward, terminated, truncated, info = env.step(np.clip(way / 0.1, -1, 1))
            assert not (terminated or truncated)
            rewards.append(reward)
            successes.append(info["success"])
    return np.array(rewards), np.array(successes)


@pytest.mark.parametrize("env_id, size", [("PointReach-v0", 4), ("PointReach2-v0", 2), ("PointReach8-v0", 8)])
def test_pointreach_rewards_and_solution(env_id, size):
    assert len(envs.TASKS[env_id]) == size and envs.TASKS[env_id][-1] == pointreach.SPARSE
    for task, name in enumerate(envs.TASKS[env_id]):
        solve_pointreach(gym.make(f"qmp/{env_id}", task=task).unwrapped, name)


def solve_pointreach(env, name):
    """Walk straight to the goal that the task is named after."""
    env.reset(seed=env.task)
    rewards, successes = follow(env, [pointreach.GOALS[name]])
    assert successes[-1] and not successes[0] and len(rewards) < 50
    if name == pointreach.SPARSE:
        assert set(rewards[successes]) == {10.0} and set(rewards[~successes]) == {0.0}
    else:
        assert rewards[-1] == pytest.approx(0, abs=0.3)
        assert rewards[0] == pytest.approx(
            -np.linalg.norm(env.trajectory[1][1:] - np.array(pointreach.GOALS[name])) / 0.1
        )
    assert rewards.min() >= -24


def test_pointreach_walls_stop():
    env = PointReach(3)
    env.reset(seed=0)
    for _ in range(30):
        env.step(np.array([1.0, 0.0]))
    assert env.position == pytest.approx([1.0, env.trajectory[0][2]])


def test_pointreach_sparse_goal_is_beyond_a_random_walk():
    """What the layout rests on: 200 episodes of uniform actions, as many as a task has in a run, see no reward."""
    env = PointReach(3)
    env.action_space.seed(0)
    for episode in range(200):
        env.reset(seed=episode)
        assert sum(env.step(env.action_space.sample())[1] for _ in range(50)) == 0


def test_pointreach_render_shows_who_acted():
    env = PointReach(0, render_mode="rgb_array")
    env.reset(seed=0)
    follow(env, [(-0.8, 0.0)])
    alone = env.render()
    env.reset(seed=0)
    env.acting_policy = 2
    follow(env, [(-0.8, 0.0)])
    helped = env.render()
    assert alone.shape == (256, 256, 3) and alone.dtype == np.uint8
    x, y = round((-0.8 + 1) / 2 * 256), round((1 + 0.4) / 2 * 256)
    assert tuple(alone[y, x]) == pointreach.COLORS[0] and tuple(helped[y, x]) == pointreach.COLORS[2]
    assert PointReach(0).render() is None
    eight = gym.make("qmp/PointReach8-v0", task=7, render_mode="rgb_array")
    eight.reset(seed=0)
    assert {tuple(color) for color in eight.render().reshape(-1, 3)} >= set(pointreach.COLORS[:7])  # a circle each
