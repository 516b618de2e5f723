"""Tests of envs/meta_world.py: the same numbers as Meta-World, seeded goals, and nothing global touched."""

import os
import pickle
import subprocess
import sys
import warnings
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task

import envs
from envs import choose_opengl
from envs.meta_world import BENCHMARKS, NUM_GOALS, Lean, MetaWorld

NAMES = list(BENCHMARKS["MT50"])


def make(name: str, **kwargs) -> MetaWorld:
    return MetaWorld("MT50", NAMES.index(name), **kwargs)


def make_plain(name: str, rand_vec: np.ndarray) -> SawyerXYZEnv:
    """Meta-World's own environment with the goal observable."""
    env = BENCHMARKS["MT50"][name]()
    settings = {"env_cls": type(env), "rand_vec": rand_vec, "partially_observable": False}
    env.set_task(Task(env_name=name, data=pickle.dumps(settings)))
    return env


def scripted_action(policy, obs: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Constant(s) may be too high"
        return np.clip(policy.get_action(obs), -1.0, 1.0).astype(np.float32)


def roll_out(env: MetaWorld, steps: int, **reset) -> list:
    """Everything that reset and `steps` steps return, with actions from a fixed generator."""
    actions = np.random.default_rng(7).uniform(-1, 1, (steps, 4)).astype(np.float32)
    obs, info = env.reset(**reset)
    return [obs.tolist(), info["goal"]] + [(o.tolist(), *rest) for o, *rest in map(env.step, actions)]


# Same numbers as Meta-World


@pytest.mark.parametrize(
    "name, touches",
    [
        ("pick-place-v3", True),
        ("push-v3", True),
        ("hand-insert-v3", True),
        ("sweep-into-v3", True),
        ("dial-turn-v3", False),
        ("door-open-v3", False),
        ("peg-insert-side-v3", False),
        ("window-open-v3", False),
    ],
)
def test_equals_metaworld(name, touches, monkeypatch):
    """Bit for bit over full scripted episodes of two goals, though only the second environment is new for each."""
    env = make(name)
    touched = []

    def touching_object(object_geom_id):
        touched.append(Lean.touching_object(env.env, object_geom_id))
        assert touched[-1] == SawyerXYZEnv.touching_object(env.env, object_geom_id)
        return touched[-1]

    monkeypatch.setattr(env.env, "touching_object", touching_object)
    for k in (3, 1):
        obs, info = env.reset(seed=0, options={"goal": k})
        plain = make_plain(name, env._goal(k))
        plain_obs, _ = plain.reset()
        policy, solved = ENV_POLICY_MAP[name](), False
        assert info == {"goal": k}
        assert obs.tolist() == plain_obs.astype(np.float32).tolist()
        assert obs[36:].any()  # the goal is observed
        for _ in range(500):
            action = scripted_action(policy, plain_obs)
            obs, reward, terminated, truncated, info = env.step(action)
            plain_obs, plain_reward, _, _, plain_info = plain.step(action)
            assert obs.dtype == np.float32 and type(reward) is float and type(info["success"]) is bool
            assert obs.tolist() == plain_obs.astype(np.float32).tolist()
            assert reward == plain_reward and 0.0 <= reward <= 10.0 + 1e-9
            assert info == {"success": bool(plain_info["success"])}
            assert not terminated and not truncated
            solved |= info["success"]
        assert solved
    assert any(touched) == touches


@st.composite
def contact_lists(draw):
    """Contacts among six geoms with non-negative forces; an address of -1 marks a contact left out of the solver."""
    geoms = st.integers(0, 5)
    pairs = draw(st.lists(st.tuples(geoms, geoms), max_size=8))
    forces = draw(st.lists(st.sampled_from([0.0, 1e-300, 0.5, 3.0]), min_size=len(pairs) + 1, max_size=len(pairs) + 1))
    return pairs, forces, [draw(st.sampled_from([i, -1])) for i in range(len(pairs))]


@given(contact_lists(), st.integers(0, 5))
def test_touching_object_equals_metaworld_on_any_contacts(contacts, object_geom_id):
    pairs, forces, addresses = contacts

    class Contacts(list):
        geom1 = np.array([a for a, _ in pairs], dtype=int)
        geom2 = np.array([b for _, b in pairs], dtype=int)
        efc_address = np.array(addresses, dtype=int)

    rows = [SimpleNamespace(geom1=a, geom2=b, efc_address=i) for (a, b), i in zip(pairs, addresses, strict=True)]
    pads = {"leftpad_geom": SimpleNamespace(id=0), "rightpad_geom": SimpleNamespace(id=1)}
    data = SimpleNamespace(contact=Contacts(rows), efc_force=np.array(forces), geom=pads.get)
    env = SimpleNamespace(data=data)
    assert Lean.touching_object(env, object_geom_id) == SawyerXYZEnv.touching_object(env, object_geom_id)


def test_touching_object_without_contacts():
    env = make("push-v3").env
    mujoco.mj_resetData(env.model, env.data)
    assert env.data.ncon == 0 and not env.touching_object(env._get_id_main_object())


def test_metaworld_itself_is_left_alone():
    before = dict(vars(SawyerXYZEnv)), dict(vars(BENCHMARKS["MT50"]["push-v3"]))
    env = make("push-v3")
    env.reset(seed=0)
    assert (dict(vars(SawyerXYZEnv)), dict(vars(BENCHMARKS["MT50"]["push-v3"]))) == before
    assert isinstance(env.env, BENCHMARKS["MT50"]["push-v3"])


# Goals


@pytest.mark.parametrize("name", ["pick-place-v3", "box-close-v3", "dial-turn-v3"])
def test_fifty_goals(name):
    """Distinct, inside Meta-World's space, and the same in any order and instance."""
    env, backwards = make(name), make(name)
    goals = np.stack([env._goal(k) for k in range(NUM_GOALS)])
    assert len(np.unique(goals, axis=0)) == NUM_GOALS == 50
    assert np.all(env.env._random_reset_space.low <= goals) and np.all(goals <= env.env._random_reset_space.high)
    roll_out(backwards, 20, seed=0)
    assert np.array_equal(goals[::-1], np.stack([backwards._goal(k) for k in reversed(range(NUM_GOALS))]))


def test_goals_are_the_same_in_another_process():
    code = (
        "from envs.meta_world import MetaWorld\n"
        "env = MetaWorld('MT10', 2, goal_seed=5)\n"
        "env.reset(seed=3)\n"
        "print(env._goal(8).tolist(), env._goal(2).tolist())"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    env = make("pick-place-v3", goal_seed=5)  # task 2 of MT10, by name
    second, eighth = env._goal(2).tolist(), env._goal(8).tolist()
    assert out.splitlines()[-1] == f"{eighth} {second}"


def test_goal_seed_and_task_decide_the_goals():
    goals = [make(name, goal_seed=seed)._goal(0) for name, seed in [("push-v3", 0), ("push-v3", 1), ("reach-v3", 0)]]
    assert not np.array_equal(goals[0], goals[1]) and not np.array_equal(goals[0], goals[2])


# Seeding


@pytest.mark.parametrize("name", ["dial-turn-v3", "drawer-open-v3", "sweep-into-v3"])
def test_seeded_episodes_do_not_depend_on_the_past(name):
    """The exact resume relies on this. The state left by Meta-World's first pass of a reset does depend on the past."""
    env = make(name)
    for seed in range(3):
        roll_out(env, 60, seed=seed)
    assert roll_out(env, 60, seed=11) == roll_out(make(name), 60, seed=11) == roll_out(env, 60, seed=11)


def test_the_seed_decides_the_order_of_goals():
    env = make("reach-v3")

    def order(seed):
        return [env.reset(seed=seed)[1]["goal"]] + [env.reset()[1]["goal"] for _ in range(9)]

    assert order(1) == order(1) != order(2)
    assert set(order(1)) < set(range(NUM_GOALS))


def test_tasks_of_a_vector_get_their_own_order_of_goals():
    vec = envs.make_vec("MetaWorldMT10-v3", seed=1)
    orders = np.stack([vec.reset(seed=seed)[1]["goal"] for seed in (1, 2, 3, 1)])  # [resets, tasks]
    assert len({tuple(column) for column in orders.T}) == 10
    assert np.array_equal(orders[0], orders[3])
    assert not np.array_equal(orders[0], orders[1])
    obs, rewards, *_ = vec.step(np.zeros((10, 4), np.float32))
    assert obs.shape == (10, 39) and obs.dtype == np.float32 and np.all(rewards >= 0)
    vec.close()


def test_global_generator_is_neither_used_nor_changed():
    runs = []
    for seed in (0, 1):
        np.random.seed(seed)
        state = pickle.dumps(np.random.get_state())
        env = make("basketball-v3")
        runs.append([roll_out(env, 30, seed=4), roll_out(env, 30)])
        assert pickle.dumps(np.random.get_state()) == state
    assert runs[0] == runs[1]


# Gymnasium


@pytest.mark.parametrize("name", ["reach-v3", "pick-place-v3", "door-lock-v3"])
def test_check_env(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations
        check_env(make(name), skip_render_check=True)


def test_spaces():
    env = make("reach-v3")
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (39,), np.float32)
    assert env.action_space == gym.spaces.Box(-1.0, 1.0, (4,), np.float32)


def test_async_vector_env():
    names = ["reach-v3", "push-v3"]
    vec = gym.vector.AsyncVectorEnv([lambda name=name: make(name) for name in names])
    obs, _ = vec.reset(seed=[5, 6])
    vec.close()
    assert obs.tolist() == [make(name).reset(seed=seed)[0].tolist() for name, seed in zip(names, (5, 6), strict=True)]


@pytest.mark.parametrize("benchmark, task", [("MT11", 0), ("MT10", 10), ("MT50", 50), ("MT10", -1), ("MT10", 0.5)])
def test_bad_arguments(benchmark, task):
    with pytest.raises(ValueError, match=f"{task if benchmark != 'MT11' else benchmark}") as error:
        MetaWorld(benchmark, task)
    assert "\n" not in str(error.value)


def test_bad_goal():
    with pytest.raises(ValueError, match="from 0 to 49, got 50"):
        make("reach-v3").reset(options={"goal": 50})


def test_render(monkeypatch):
    try:
        monkeypatch.setenv("MUJOCO_GL", choose_opengl())
    except ValueError as error:
        pytest.skip(str(error))
    tasks = [make(name, render_mode="rgb_array") for name in ("pick-place-v3", "window-open-v3")]
    for env in tasks:
        env.reset(seed=0)
    frames = [env.render() for env in tasks]
    assert all(frame.shape == (320, 320, 3) and frame.dtype == np.uint8 and frame.std() > 20 for frame in frames)
    assert not np.array_equal(*frames)
    assert all(np.array_equal(frame, env.render()) for frame, env in zip(frames, tasks, strict=True))  # side by side
    camera = tasks[0].env.mujoco_renderer._get_viewer("rgb_array").scn.camera[0]
    assert camera.up[2] > 0.5  # the right way up
    for _ in range(10):
        tasks[0].step(np.array([0, 0, 1, 0], np.float32))
    assert not np.array_equal(frames[0], tasks[0].render())
    tasks[0].close()
    assert np.array_equal(frames[1], tasks[1].render())
    tasks[1].close()
    assert make("reach-v3").render() is None
