"""envs/meta_world.py: the same numbers as Meta-World, goals, and nothing global touched."""

import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from metaworld.types import Task

import envs
from envs.meta_world import ALL_TASKS, NUM_GOALS, TASK_SETS, FasterSawyer, MetaWorld

EVALUATION = {"evaluation": True}


def make_plain(name, rand_vec):
    """Meta-World's own environment with the goal observable."""
    env = ALL_V3_ENVIRONMENTS[name]()
    settings = {"env_cls": type(env), "rand_vec": rand_vec, "partially_observable": False}
    env.set_task(Task(env_name=name, data=pickle.dumps(settings)))
    return env


def scripted_action(policy, obs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Constant(s) may be too high"
        return np.clip(policy.get_action(obs), -1.0, 1.0).astype(np.float32)


def roll_out(env, steps, **reset):
    """Everything that reset and `steps` steps return, with actions from a fixed generator."""
    actions = np.random.default_rng(7).uniform(-1, 1, (steps, 4)).astype(np.float32)
    obs, info = env.reset(**reset)
    return [obs.tolist(), info["goal"]] + [
        (o.tolist(), *rest) for o, *rest in map(env.step, actions)
    ]


@pytest.mark.parametrize(
    "name, touches", [("pick-place-v3", True), ("dial-turn-v3", False), ("door-open-v3", False)]
)
def test_equals_metaworld(name, touches, monkeypatch):
    """Bit for bit over a full scripted episode of the second goal, in which it is reached."""
    env = MetaWorld(name)
    touched, solved = [], False

    def touching_object(object_geom_id):
        touched.append(FasterSawyer.touching_object(env.env, object_geom_id))
        assert touched[-1] == SawyerXYZEnv.touching_object(env.env, object_geom_id)
        return touched[-1]

    monkeypatch.setattr(env.env, "touching_object", touching_object)
    env.reset(seed=0, options=EVALUATION)
    obs, info = env.reset()
    plain = make_plain(name, env._goal(1))
    plain_obs, _ = plain.reset()
    policy = ENV_POLICY_MAP[name]()
    assert info == {"goal": 1}
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


@pytest.mark.parametrize("name", ALL_TASKS)
def test_every_task_equals_metaworld(name):
    """Bit for bit over sixty random steps, from the second goal."""
    env = MetaWorld(name)
    env.reset(seed=0, options=EVALUATION)
    obs, info = env.reset()
    plain = make_plain(name, env._goal(info["goal"]))
    assert info == {"goal": 1}
    assert obs.tolist() == plain.reset()[0].astype(np.float32).tolist()
    for action in np.random.default_rng(7).uniform(-1, 1, (60, 4)).astype(np.float32):
        obs, reward, _, _, info = env.step(action)
        plain_obs, plain_reward, _, _, plain_info = plain.step(action)
        assert obs.tolist() == plain_obs.astype(np.float32).tolist() and reward == plain_reward
        assert info["success"] == bool(plain_info["success"])


@st.composite
def contact_lists(draw):
    """Contacts among six geoms; an address of -1 marks one that is left out of the solver."""
    geoms = st.integers(0, 5)
    pairs = draw(st.lists(st.tuples(geoms, geoms), max_size=8))
    forces = draw(
        st.lists(
            st.sampled_from([0.0, 1e-300, 0.5, 3.0]),
            min_size=len(pairs) + 1,
            max_size=len(pairs) + 1,
        )
    )
    return pairs, forces, [draw(st.sampled_from([i, -1])) for i in range(len(pairs))]


@given(contact_lists(), st.integers(0, 5))
def test_touching_object_equals_metaworld_on_any_contacts(contacts, object_geom_id):
    pairs, forces, addresses = contacts

    class Contacts(list):
        geom1 = np.array([a for a, _ in pairs], dtype=int)
        geom2 = np.array([b for _, b in pairs], dtype=int)
        efc_address = np.array(addresses, dtype=int)

    rows = [
        SimpleNamespace(geom1=a, geom2=b, efc_address=i)
        for (a, b), i in zip(pairs, addresses, strict=True)
    ]
    pads = {"leftpad_geom": SimpleNamespace(id=0), "rightpad_geom": SimpleNamespace(id=1)}
    data = SimpleNamespace(contact=Contacts(rows), efc_force=np.array(forces), geom=pads.get)
    env = SimpleNamespace(data=data)
    assert FasterSawyer.touching_object(env, object_geom_id) == SawyerXYZEnv.touching_object(
        env, object_geom_id
    )


def test_metaworld_itself_is_left_alone():
    theirs = ALL_V3_ENVIRONMENTS["push-v3"]
    before = dict(vars(SawyerXYZEnv)), dict(vars(theirs))
    env = MetaWorld("push-v3")
    env.reset(seed=0)
    assert (dict(vars(SawyerXYZEnv)), dict(vars(theirs))) == before
    assert isinstance(env.env, theirs)


def test_task_sets_lie_within_each_other():
    assert set(TASK_SETS["MT10"]) < set(TASK_SETS["MT25"]) < set(TASK_SETS["MT50"])
    assert TASK_SETS["MT50"] == ALL_TASKS
    assert [TASK_SETS["MT25"][i] for i in (0, 24)] == ["reach-v3", "dial-turn-v3"]
    assert all(tuple(envs.make_tasks(f"MetaWorld{x}-v3")) == TASK_SETS[x] for x in TASK_SETS)


@pytest.mark.parametrize("name", ["dial-turn-v3"])
def test_fifty_goals_to_train_and_fifty_others_to_evaluate(name):
    """All distinct, inside Meta-World's space, and the same in any order and instance."""
    goals = {}
    for evaluation in (False, True):
        env, backwards = MetaWorld(name), MetaWorld(name)
        env.reset(seed=0, options={"evaluation": evaluation})
        goals[evaluation] = np.stack([env._goal(k) for k in range(NUM_GOALS)])
        space = env.env._random_reset_space
        assert np.all(space.low <= goals[evaluation]) and np.all(goals[evaluation] <= space.high)
        roll_out(backwards, 20, seed=0, options={"evaluation": evaluation})
        again = [backwards._goal(k) for k in reversed(range(NUM_GOALS))][::-1]
        assert np.array_equal(goals[evaluation], again)
    assert len(np.unique(np.concatenate(list(goals.values())), axis=0)) == 100


def test_pictures_are_the_right_way_up(opengl):
    env = MetaWorld("pick-place-v3", render_mode="rgb_array")
    env.reset(seed=0)
    env.render()
    assert env.env.mujoco_renderer._get_viewer("rgb_array").scn.camera[0].up[2] > 0.5
    env.close()


def test_evaluation_takes_each_goal_in_order_whatever_the_seed():
    """And training goes on with goals of its own choice."""
    vec = envs.make_vec("MetaWorld:reach-v3,push-v3")
    seen = []
    for seed in (5, [8, 9]):
        starts = [vec.reset(seed=seed, options=EVALUATION)]
        starts += [vec.reset() for _ in range(NUM_GOALS)]
        assert [env.unwrapped._goal_number for env in vec.unwrapped.envs] == [0, 0]
        seen.append([obs.tolist() for obs, _ in starts])
        vec.step(np.ones((2, 4)))
    assert seen[0] == seen[1] and seen[0][0] == seen[0][-1]
    assert all(len({tuple(obs[task]) for obs in seen[0]}) == 50 for task in (0, 1))
    trained = [vec.reset(seed=seed, options={"evaluation": False})[0].tolist() for seed in (5, 6)]
    assert trained[0] != trained[1] and trained[0] not in seen[0]
