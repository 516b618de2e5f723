"""envs/meta_world.py: the same numbers as Meta-World, goals, and nothing global touched."""

import pickle
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


def start_both(name):
    """Our environment and Meta-World's own at the start of the second goal, which is observed."""
    ours = MetaWorld(name)
    ours.reset(seed=0, options=EVALUATION)
    obs, info = ours.reset()
    assert info == {"goal": 1}
    theirs = ALL_V3_ENVIRONMENTS[name]()
    settings = {"env_cls": type(theirs), "rand_vec": ours._goal(1), "partially_observable": False}
    theirs.set_task(Task(env_name=name, data=pickle.dumps(settings)))
    their_obs, _ = theirs.reset()
    assert obs.tolist() == their_obs.astype(np.float32).tolist() and obs[36:].any()
    return ours, theirs, their_obs


def step_both(ours, theirs, action):
    """Compare what they return, bit for bit; Meta-World's observation, and success."""
    obs, reward, terminated, truncated, info = ours.step(action)
    their_obs, their_reward, _, _, their_info = theirs.step(action)
    assert obs.dtype == np.float32 and type(reward) is float and type(info["success"]) is bool
    assert obs.tolist() == their_obs.astype(np.float32).tolist()
    assert reward == their_reward and 0.0 <= reward <= 10.0 + 1e-9
    assert info == {"success": bool(their_info["success"])}
    assert not terminated and not truncated
    return their_obs, info["success"]


@pytest.mark.parametrize(
    "name, touches", [("pick-place-v3", True), ("dial-turn-v3", False), ("door-open-v3", False)]
)
@pytest.mark.filterwarnings("ignore:Constant")  # "Constant(s) may be too high"
def test_equals_metaworld(name, touches, monkeypatch):
    """Over a scripted episode that reaches the goal. Meta-World's own classes stay as they were."""
    classes = SawyerXYZEnv, ALL_V3_ENVIRONMENTS[name]
    before = [dict(vars(one)) for one in classes]
    ours, theirs, obs = start_both(name)
    policy = ENV_POLICY_MAP[name]()
    touched, solved = [], False

    def touching_object(object_geom_id):
        touched.append(FasterSawyer.touching_object(ours.env, object_geom_id))
        assert touched[-1] == SawyerXYZEnv.touching_object(ours.env, object_geom_id)
        return touched[-1]

    monkeypatch.setattr(ours.env, "touching_object", touching_object)
    for _ in range(500):
        action = np.clip(policy.get_action(obs), -1, 1).astype(np.float32)
        obs, success = step_both(ours, theirs, action)
        solved |= success
    assert solved and any(touched) == touches
    assert [dict(vars(one)) for one in classes] == before and isinstance(ours.env, classes[1])


@pytest.mark.parametrize("name", ALL_TASKS)
def test_every_task_equals_metaworld(name):
    """Over sixty random steps."""
    ours, theirs, _ = start_both(name)
    for action in np.random.default_rng(7).uniform(-1, 1, (60, 4)).astype(np.float32):
        step_both(ours, theirs, action)


GEOMS = st.integers(0, 5)
FORCES = st.sampled_from([0.0, 1e-300, 0.5, 3.0])


@given(st.lists(st.tuples(GEOMS, GEOMS, FORCES, st.booleans()), max_size=8), FORCES, GEOMS)
def test_touching_object_equals_metaworld_on_any_contacts(contacts, last_force, object_geom_id):
    """Among six geoms; an address of -1 marks a contact that is left out of the solver."""
    rows = []
    for i, (geom1, geom2, _, is_solved) in enumerate(contacts):
        address = i if is_solved else -1
        rows.append(SimpleNamespace(geom1=geom1, geom2=geom2, efc_address=address))

    class Contacts(list):
        geom1 = np.array([row.geom1 for row in rows], dtype=int)
        geom2 = np.array([row.geom2 for row in rows], dtype=int)
        efc_address = np.array([row.efc_address for row in rows], dtype=int)

    forces = np.array([force for _, _, force, _ in contacts] + [last_force])
    pads = {"leftpad_geom": SimpleNamespace(id=0), "rightpad_geom": SimpleNamespace(id=1)}
    data = SimpleNamespace(contact=Contacts(rows), efc_force=forces, geom=pads.get)
    env = SimpleNamespace(data=data)
    expected = SawyerXYZEnv.touching_object(env, object_geom_id)
    assert FasterSawyer.touching_object(env, object_geom_id) == expected


def test_task_sets_lie_within_each_other():
    assert set(TASK_SETS["MT10"]) < set(TASK_SETS["MT25"]) < set(TASK_SETS["MT50"])
    assert TASK_SETS["MT50"] == ALL_TASKS
    assert [TASK_SETS["MT25"][i] for i in (0, 24)] == ["reach-v3", "dial-turn-v3"]
    assert all(tuple(envs.make_tasks(f"MetaWorld{x}-v3")) == TASK_SETS[x] for x in TASK_SETS)


def test_fifty_goals_to_train_and_fifty_others_to_evaluate():
    """All distinct, inside Meta-World's space, and the same in any order and instance."""
    goals = {}
    for evaluation in (False, True):
        env, backwards = MetaWorld("dial-turn-v3"), MetaWorld("dial-turn-v3")
        env.reset(seed=0, options={"evaluation": evaluation})
        goals[evaluation] = np.stack([env._goal(k) for k in range(NUM_GOALS)])
        space = env.env._random_reset_space
        assert np.all(space.low <= goals[evaluation]) and np.all(goals[evaluation] <= space.high)
        backwards.reset(seed=0, options={"evaluation": evaluation})
        backwards.step(np.ones(4, np.float32))
        again = [backwards._goal(k) for k in reversed(range(NUM_GOALS))][::-1]
        assert np.array_equal(goals[evaluation], again)
    assert len(np.unique(np.concatenate(list(goals.values())), axis=0)) == 100


def test_pictures_are_the_right_way_up(opengl):
    env = MetaWorld("pick-place-v3", render_mode="rgb_array")
    env.reset(seed=0)
    env.render()
    assert env.env.mujoco_renderer._get_viewer("rgb_array").scn.camera[0].up[2] > 0.5


def test_evaluation_takes_each_goal_in_order_whatever_the_seed():
    """And training goes on with goals of its own choice."""
    vec = envs.make_vec("MetaWorld:reach-v3,push-v3")
    assert vec.tasks == ("reach-v3", "push-v3") and list(vec.min_rewards) == [0, 0]
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
