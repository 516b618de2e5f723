"""Tests of envs/meta_world.py: the same numbers as Meta-World, seeded goals, copies, and nothing global touched."""

import copy
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
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task

from envs.meta_world import ALL_TASKS, NUM_GOALS, TASK_SETS, FasterSawyer, MetaWorld


def make(name: str, **kwargs) -> MetaWorld:
    return MetaWorld((name,), 0, **kwargs)


def make_plain(name: str, rand_vec: np.ndarray) -> SawyerXYZEnv:
    """Meta-World's own environment with the goal observable."""
    env = ALL_V3_ENVIRONMENTS[name]()
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
    env = make(name, evaluation=True)
    touched, solved = [], False

    def touching_object(object_geom_id):
        touched.append(FasterSawyer.touching_object(env.env, object_geom_id))
        assert touched[-1] == SawyerXYZEnv.touching_object(env.env, object_geom_id)
        return touched[-1]

    monkeypatch.setattr(env.env, "touching_object", touching_object)
    for k in range(2):
        obs, info = env.reset()
        plain = make_plain(name, env._goal(k))
        plain_obs, _ = plain.reset()
        policy = ENV_POLICY_MAP[name]()
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
    assert solved and any(touched) == touches


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
    assert FasterSawyer.touching_object(env, object_geom_id) == SawyerXYZEnv.touching_object(env, object_geom_id)


def test_touching_object_without_contacts():
    env = make("push-v3").env
    mujoco.mj_resetData(env.model, env.data)
    assert env.data.ncon == 0 and not env.touching_object(env._get_id_main_object())


def test_metaworld_itself_is_left_alone():
    before = dict(vars(SawyerXYZEnv)), dict(vars(ALL_V3_ENVIRONMENTS["push-v3"]))
    env = make("push-v3")
    env.reset(seed=0)
    assert (dict(vars(SawyerXYZEnv)), dict(vars(ALL_V3_ENVIRONMENTS["push-v3"]))) == before
    assert isinstance(env.env, ALL_V3_ENVIRONMENTS["push-v3"])


# Tasks


def test_task_sets():
    """MT10 within MT25 within MT50, without repetition, and tasks in their order."""
    assert {name: len(set(tasks)) for name, tasks in TASK_SETS.items()} == {"MT10": 10, "MT25": 25, "MT50": 50}
    assert {name: len(tasks) for name, tasks in TASK_SETS.items()} == {"MT10": 10, "MT25": 25, "MT50": 50}
    assert set(TASK_SETS["MT10"]) < set(TASK_SETS["MT25"]) < set(TASK_SETS["MT50"]) == set(ALL_TASKS)
    assert [MetaWorld(TASK_SETS["MT25"], i).task_name for i in (0, 24)] == ["reach-v3", "dial-turn-v3"]


def test_own_task_set():
    """Each environment is the named task, with the goals and episodes that the task has in any other set."""
    own = ("push-v3", "dial-turn-v3")
    for i, name in enumerate(own):
        env = MetaWorld(own, i)
        assert isinstance(env.env, ALL_V3_ENVIRONMENTS[name])
        assert roll_out(env, 5, seed=2) == roll_out(MetaWorld(ALL_TASKS, ALL_TASKS.index(name)), 5, seed=2)


@pytest.mark.parametrize("task", [2, -1, 0.5])
def test_bad_position(task):
    with pytest.raises(ValueError, match=f"integer from 0 to 1, got {task}"):
        MetaWorld(("reach-v3", "push-v3"), task)


@pytest.mark.parametrize(
    "name, close", [("reech-v3", "reach-v3"), ("push", "push-v3"), ("window-open-v2", "window-open-v3")]
)
def test_unknown_task(name, close):
    """Found at any position; one line with the closest name and all that is allowed."""
    with pytest.raises(ValueError) as error:
        MetaWorld(("reach-v3", name), 0)
    message = str(error.value)
    assert message.startswith(f"unknown Meta-World task '{name}'; did you mean '{close}'?") and "\n" not in message
    assert message.endswith(f"Allowed: {', '.join(ALL_TASKS)}")


# Goals


@pytest.mark.parametrize("name", ["pick-place-v3", "box-close-v3", "dial-turn-v3"])
def test_fifty_goals_to_train_and_fifty_others_to_evaluate(name):
    """All distinct, inside Meta-World's space, and the same in any order and instance."""
    goals = {}
    for evaluation in (False, True):
        env, backwards = make(name, evaluation=evaluation), make(name, evaluation=evaluation)
        goals[evaluation] = np.stack([env._goal(k) for k in range(NUM_GOALS)])
        space = env.env._random_reset_space
        assert np.all(space.low <= goals[evaluation]) and np.all(goals[evaluation] <= space.high)
        roll_out(backwards, 20, seed=0)
        assert np.array_equal(goals[evaluation], [backwards._goal(k) for k in reversed(range(NUM_GOALS))][::-1])
    assert len(np.unique(np.concatenate(list(goals.values())), axis=0)) == 100


def test_evaluation_takes_every_goal_once_and_in_order():
    env = make("reach-v3", evaluation=True)
    positions, numbers = [], []
    for episode in range(NUM_GOALS + 2):
        obs, info = env.reset(seed=5 if episode == 0 else None)
        env.step(env.action_space.sample())
        positions.append(tuple(obs[36:]))
        numbers.append(info["goal"])
    assert numbers == [*range(50), 0, 1]
    assert len(set(positions)) == 50 and positions[50:] == positions[:2]


def test_evaluation_starts_again_with_every_seed():
    """The same goals and observations whatever the seed and the past, with Gymnasium's autoreset too."""

    def make_short(name):
        return gym.wrappers.TimeLimit(make(name, evaluation=True), 2)

    vec = gym.vector.SyncVectorEnv(
        [lambda name=name: make_short(name) for name in ("reach-v3", "push-v3")],
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
    )

    def evaluate(steps, **reset):
        obs, infos = vec.reset(**reset)
        firsts, numbers = [obs.tolist()], [infos["goal"].tolist()]
        for _ in range(steps):
            obs, *_, truncations, infos = vec.step(np.zeros((2, 4), np.float32))
            if truncations.any():
                firsts.append(obs.tolist())
                numbers.append(infos["goal"].tolist())
        return firsts, numbers

    first = evaluate(6)
    assert first[1] == [[0, 0], [1, 1], [2, 2], [3, 3]]
    assert evaluate(1)[1] == [[4, 4]]  # goes on where no seed is given
    assert evaluate(6, seed=1) == evaluate(6, seed=[8, 9]) == first
    assert evaluate(3, seed=1)[1] == [[0, 0], [1, 1]]
    vec.close()


def test_goals_are_the_same_in_another_process():
    code = (
        "from envs.meta_world import TASK_SETS, MetaWorld\n"
        "for evaluation in (False, True):\n"
        "    env = MetaWorld(TASK_SETS['MT10'], 2, evaluation)\n"
        "    env.reset(seed=3)\n"
        "    print(env._goal(8).tolist(), env._goal(2).tolist())"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    for evaluation, line in zip((False, True), out.splitlines()[-2:], strict=True):
        env = make("pick-place-v3", evaluation=evaluation)  # task 2 of MT10, by name
        second, eighth = env._goal(2).tolist(), env._goal(8).tolist()
        assert line == f"{eighth} {second}"


def test_the_task_decides_the_goals():
    assert not np.array_equal(make("push-v3")._goal(0), make("reach-v3")._goal(0))


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


# Copies


# Most keep views into the simulation's arrays, for example as the position of the target, the object or the pads.
@pytest.mark.parametrize("name", ["basketball-v3", "sweep-into-v3", "pick-place-v3", "door-lock-v3", "drawer-open-v3"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))], ids=["copy", "pickle"])
def test_a_copy_goes_on_as_the_original_would(name, copied):
    """In the middle of an episode, in the next one, which the generator chooses, and after a seed."""
    env, straight = make(name), make(name)
    actions = np.random.default_rng(3).uniform(-1, 1, (60, 4)).astype(np.float32)

    def play(env, actions):
        return [(obs.tolist(), *rest) for obs, *rest in map(env.step, actions)]

    for one in (env, straight):
        roll_out(one, 20, seed=1)
        one.reset()
        play(one, actions[:30])
    twin = copied(env)
    played = play(env, actions[30:])
    roll_out(env, 10)
    assert play(twin, actions[30:]) == played == play(straight, actions[30:])
    assert roll_out(twin, 20) == roll_out(straight, 20)
    assert roll_out(twin, 20, seed=3) == roll_out(straight, 20, seed=3)


def test_a_copy_of_an_evaluation_takes_the_next_goal():
    env = make("reach-v3", evaluation=True)
    assert copy.deepcopy(env).reset()[1] == {"goal": 0}
    env.reset(seed=0)
    env.reset()
    twin = pickle.loads(pickle.dumps(env))
    assert [twin.reset()[1]["goal"], twin.reset()[1]["goal"], env.reset()[1]["goal"]] == [2, 3, 2]


# Gymnasium


@pytest.mark.parametrize("name", ["reach-v3", "pick-place-v3", "door-lock-v3"])
def test_check_env_of_evaluation(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations
        check_env(make(name, evaluation=True), skip_render_check=True)


def test_render(opengl):
    tasks = [make(name, render_mode="rgb_array") for name in ("pick-place-v3", "window-open-v3")]
    for env in tasks:
        env.reset(seed=0)
    frames = [env.render() for env in tasks]
    assert all(frame.shape == (320, 320, 3) and frame.std() > 20 for frame in frames)
    camera = tasks[0].env.mujoco_renderer._get_viewer("rgb_array").scn.camera[0]
    assert camera.up[2] > 0.5  # the right way up
    for env in tasks:
        env.close()
