"""envs/meta_world_cds.py: Meta-World's rewards and motion, both objects in every task, places."""

import pickle
import warnings

import mujoco
import numpy as np
import pytest
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task

from envs.meta_world_cds import APART, BOXES, TASKS, MetaWorldCDS

ALL = range(4)
OBJECTS = ("door", "door", "drawer", "drawer")
JOINTS = ("doorjoint", "doorjoint", "goal_slidey", "goal_slidey")
OWN = (
    slice(11, 18),
    slice(11, 18),
    slice(4, 11),
    slice(4, 11),
)  # where the task's object is observed
OPEN = (-1.3, -1.3, -0.15, -0.15)  # of the task's joint


class Controller:
    """Solves `task` from our observations: Meta-World's scripted policy.

    To open it starts from above, because the door stands further to the left than Meta-World's.
    """

    def __init__(self, task: int):
        self.task = task
        self.policy = ENV_POLICY_MAP[f"{TASKS[task]}-v3"]()
        self.approaching = "open" in TASKS[task]

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        hand, handle = obs[:3], obs[OWN[self.task]][:3]
        if self.approaching:
            way = handle + (0.01, 0.02, 0.3) - hand
            self.approaching = np.linalg.norm(way) > 0.03
            return np.clip([*(25 * way if way[2] < 0.03 else (0, 0, 1)), -1], -1, 1).astype(
                np.float32
            )  # first up
        theirs = np.zeros(39)
        theirs[:4], theirs[4:7], theirs[36:] = obs[:4], handle, obs[18:]
        theirs[6] += 0.05 * (
            TASKS[self.task] == "drawer-close"
        )  # which is where the policy takes the handle to be
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high"
            return np.clip(self.policy.get_action(theirs), -1, 1).astype(np.float32)


def joint(env: MetaWorldCDS, name: str) -> float:
    return env.env.data.joint(name).qpos.item()


def place(env: MetaWorldCDS, name: str) -> np.ndarray:
    return env.env.model.body(name).pos.copy()


# Same numbers as Meta-World, whose own environments hold one of the two objects


def make_plain(env: MetaWorldCDS, task: int):
    """Meta-World's own environment, its object and the hand where they start in `env`."""
    env_cls = ALL_V3_ENVIRONMENTS[f"{TASKS[task]}-v3"]
    plain = env_cls()
    settings = {
        "env_cls": env_cls,
        "rand_vec": place(env, OBJECTS[task]),
        "partially_observable": False,
    }
    plain.set_task(Task(env_name=TASKS[task], data=pickle.dumps(settings)))
    plain.hand_init_pos = env.env.hand_init_pos
    plain.reset()
    return plain


def mixed_actions(task: int):
    """A controller that solves the task, with a random action at every tenth step."""
    controller, rng = Controller(task), np.random.default_rng(task)
    return lambda i, obs: controller(obs) if i % 10 else rng.uniform(-1, 1, 4).astype(np.float32)


@pytest.mark.parametrize("task", ALL)
def test_rewards_and_observations_are_metaworlds(task):
    """Those of Meta-World's own environment put into the same state, from the start to success.

    But in drawer-close the handle is taken to be where it is, not 5 cm above.
    """
    env = MetaWorldCDS(task)
    obs, _ = env.reset(seed=task)
    plain, act = make_plain(env, task), mixed_actions(task)
    rewards, successes = [], []
    for i in range(180):
        action = act(i, obs)
        obs, reward, terminated, truncated, info = env.step(action)
        plain.data.qpos[:9] = env.env.data.qpos[:9]
        plain.data.qpos[9] = joint(env, JOINTS[task])
        mujoco.mj_forward(plain.model, plain.data)
        theirs = plain._get_obs()
        if TASKS[task] == "drawer-close":
            theirs[6:11] = theirs[6] - 0.05, 1, 0, 0, 0  # nor does it have a quaternion
        expected, expected_info = plain.evaluate_state(theirs, action)
        assert reward == pytest.approx(expected, rel=1e-9) and type(reward) is float
        assert (
            info == {"success": bool(expected_info["success"])} and not terminated and not truncated
        )
        assert obs[:4] == pytest.approx(theirs[:4], abs=1e-6)
        assert obs[OWN[task]] == pytest.approx(theirs[4:11], abs=1e-6)
        assert obs[18:] == pytest.approx(theirs[36:], abs=1e-6)
        rewards.append(reward)
        successes.append(info["success"])
    assert any(successes) and not successes[0]
    assert 0.0 <= min(rewards) < 2.0 and 8.0 < max(rewards) <= 10.0


@pytest.mark.parametrize("task", ALL)
def test_motion_is_metaworlds(task):
    """As long as it is not touched, the other object changes nothing."""
    env = MetaWorldCDS(task)
    obs, _ = env.reset(seed=10 + task)
    plain, act = make_plain(env, task), mixed_actions(task)
    moved = joint(env, JOINTS[task])
    for i in range(150):
        action = act(i, obs)
        obs, *_ = env.step(action)
        plain.step(action)
        assert env.env.data.qpos[:9] == pytest.approx(plain.data.qpos[:9], abs=3e-3)
        assert joint(env, JOINTS[task]) == pytest.approx(plain.data.qpos[9], abs=3e-3)
    assert abs(joint(env, JOINTS[task]) - moved) > 0.1


# Both objects in all tasks


@pytest.mark.parametrize("task, helper", [(0, 2), (1, 2), (2, 0), (3, 0)])
def test_the_other_object_can_be_opened_too(task, helper):
    """By the other task's controller; the own object does what it does if nothing touches it."""
    env, idle = MetaWorldCDS(task), MetaWorldCDS(task)
    before, _ = obs, _ = env.reset(seed=1)
    idle.reset(seed=1)
    controller = Controller(helper)
    for _ in range(200):
        obs, *_ = env.step(controller(obs))
        untouched, *_ = idle.step(np.zeros(4, np.float32))
    assert joint(env, JOINTS[helper]) < OPEN[helper] and joint(
        idle, JOINTS[helper]
    ) == pytest.approx(0, abs=1e-3)
    assert obs[OWN[task]] == pytest.approx(untouched[OWN[task]], abs=1e-3)
    assert np.linalg.norm((obs - before)[OWN[helper]][:3]) > 0.15


# Starts


@pytest.mark.parametrize("task", ALL)
def test_starts(task):
    """The object all over its box, the other apart; the hand in its place; the goal at a distance."""
    env = MetaWorldCDS(task)
    other = "drawer" if OBJECTS[task] == "door" else "door"
    places, observed = [], []
    for seed in range(40):
        obs, info = env.reset(seed=seed)
        places.append(place(env, OBJECTS[task]))
        observed.append(obs)
        assert info == {} and tuple(place(env, other)) == APART[other]
        assert joint(env, JOINTS[task]) == pytest.approx([0, -np.pi / 2, 0, -0.15][task], abs=1e-3)
        assert joint(env, JOINTS[(task + 2) % 4]) == pytest.approx(0, abs=1e-3)
    places, observed = np.array(places), np.array(observed)
    low, high = np.array(BOXES[OBJECTS[task]])
    assert np.all(places >= low) and np.all(places <= high)
    assert np.all(places.min(0) <= low + 0.1 * (high - low)) and np.all(
        places.max(0) >= high - 0.1 * (high - low)
    )
    assert places.mean(0) == pytest.approx((low + high) / 2, abs=0.02)
    goal = [(-0.3, -0.45, 0.0), (0.2, -0.2, 0.0), (0.0, -0.36, 0.09), (0.0, -0.16, 0.09)][task]
    assert observed[:, 18:] - places == pytest.approx(np.tile(goal, (40, 1)), abs=1e-6)
    handle = {"door": (0.19, -0.207, 0.0), "drawer": (0.0, -0.17, 0.09)}  # in their frames, closed
    assert observed[:, OWN[(task + 2) % 4]][:, :3] == pytest.approx(
        np.tile(handle[other] + np.array(APART[other]), (40, 1)), abs=2e-3
    )
    assert observed[:, :3] == pytest.approx(
        np.tile((-0.6 * (task == 1), 0.6, 0.2), (40, 1)), abs=0.02
    )
    assert np.all(observed[:, 3] > 0.9)  # the gripper is open
