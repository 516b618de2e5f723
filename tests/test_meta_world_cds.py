"""Tests of envs/meta_world_cds.py: Meta-World's rewards and motion, both objects in every task, places, seeds."""

import pickle
import warnings

import mujoco
import numpy as np
import pytest
from metaworld.asset_path_utils import full_V3_path_for
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.types import Task

from envs.meta_world_cds import APART, BOXES, TASKS, MetaWorldCDS

ALL = range(4)
OBJECTS = ("door", "door", "drawer", "drawer")
JOINTS = ("doorjoint", "doorjoint", "goal_slidey", "goal_slidey")
OWN = (slice(11, 18), slice(11, 18), slice(4, 11), slice(4, 11))  # where the task's object is observed
OPEN = (-1.3, -1.3, -0.15, -0.15)  # of the task's joint


class Controller:
    """Solves `task` from our observations: Meta-World's scripted policy, which to open starts from above the handle.

    Without that it runs into the handle, because the door stands further to the left than Meta-World's.
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
            return np.clip([*(25 * way if way[2] < 0.03 else (0, 0, 1)), -1], -1, 1).astype(np.float32)  # first up
        theirs = np.zeros(39)
        theirs[:4], theirs[4:7], theirs[36:] = obs[:4], handle, obs[18:]
        theirs[6] += 0.05 * (TASKS[self.task] == "drawer-close")  # which is where the policy takes the handle to be
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high"
            return np.clip(self.policy.get_action(theirs), -1, 1).astype(np.float32)


def joint(env: MetaWorldCDS, name: str) -> float:
    return env.env.data.joint(name).qpos.item()


def place(env: MetaWorldCDS, name: str) -> np.ndarray:
    return env.env.model.body(name).pos.copy()


def roll_out(env: MetaWorldCDS, steps: int, **reset) -> list:
    """Everything that reset and `steps` steps return, with actions from a fixed generator."""
    actions = np.random.default_rng(7).uniform(-1, 1, (steps, 4)).astype(np.float32)
    obs, info = env.reset(**reset)
    return [obs.tolist(), info] + [(o.tolist(), *rest) for o, *rest in map(env.step, actions)]


# Same numbers as Meta-World, whose own environments hold one of the two objects


def make_plain(env: MetaWorldCDS, task: int):
    """Meta-World's own environment of the task, its object and the hand where they start in `env`."""
    env_cls = ALL_V3_ENVIRONMENTS[f"{TASKS[task]}-v3"]
    plain = env_cls()
    settings = {"env_cls": env_cls, "rand_vec": place(env, OBJECTS[task]), "partially_observable": False}
    plain.set_task(Task(env_name=TASKS[task], data=pickle.dumps(settings)))
    plain.hand_init_pos = env.env.hand_init_pos
    plain.reset()
    return plain


def mixed_actions(task: int):
    """A controller that solves the task, with a random action at every tenth step to meet more states."""
    controller, rng = Controller(task), np.random.default_rng(task)
    return lambda i, obs: controller(obs) if i % 10 else rng.uniform(-1, 1, 4).astype(np.float32)


@pytest.mark.parametrize("task", ALL)
def test_rewards_and_observations_are_metaworlds(task):
    """Those of Meta-World's own environment put into the same state, at every step from the start to success.

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
        assert info == {"success": bool(expected_info["success"])} and not terminated and not truncated
        assert obs[:4] == pytest.approx(theirs[:4], abs=1e-6)
        assert obs[OWN[task]] == pytest.approx(theirs[4:11], abs=1e-6)
        assert obs[18:] == pytest.approx(theirs[36:], abs=1e-6)
        rewards.append(reward)
        successes.append(info["success"])
    assert any(successes) and not successes[0]
    assert 0.0 <= min(rewards) < 2.0 and 8.0 < max(rewards) <= 10.0


def test_pushing_the_drawer_in_by_95_mm_is_enough():
    """Of the 150 mm that it stands open; with a handle 5 cm higher it would take 108.5 mm."""
    env = MetaWorldCDS(3)
    env.reset(seed=0)
    for pushed, success in ((0.0, False), (0.09, False), (0.094, False), (0.096, True), (0.15, True)):
        env.env.data.joint("goal_slidey").qpos, env.env.data.joint("goal_slidey").qvel = pushed - 0.15, 0.0
        _, reward, _, _, info = env.step(np.zeros(4, np.float32))
        assert info == {"success": success} and (reward == 10) is success
        assert joint(env, "goal_slidey") == pytest.approx(pushed - 0.15, abs=1e-4)


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


@pytest.mark.parametrize("task", ALL)
def test_success_can_be_reached(task):
    env = MetaWorldCDS(task)
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        controller, success, steps = Controller(task), False, 0
        while not success and steps < 250:
            obs, _, _, _, info = env.step(controller(obs))
            success, steps = info["success"], steps + 1
        assert success and steps > 20


@pytest.mark.parametrize("task, helper", [(0, 2), (1, 2), (2, 0), (3, 0)])
def test_the_other_object_can_be_opened_too(task, helper):
    """By the other task's controller; the task's own object does what it does if nothing touches it."""
    env, idle = MetaWorldCDS(task), MetaWorldCDS(task)
    before, _ = obs, _ = env.reset(seed=1)
    idle.reset(seed=1)
    controller = Controller(helper)
    for _ in range(200):
        obs, *_ = env.step(controller(obs))
        untouched, *_ = idle.step(np.zeros(4, np.float32))
    assert joint(env, JOINTS[helper]) < OPEN[helper] and joint(idle, JOINTS[helper]) == pytest.approx(0, abs=1e-3)
    assert obs[OWN[task]] == pytest.approx(untouched[OWN[task]], abs=1e-3)
    assert np.linalg.norm((obs - before)[OWN[helper]][:3]) > 0.15


def test_neither_object_is_in_the_way_of_the_other():
    """Not even where they come closest; with both at the near ends of their boxes they would be."""
    env = MetaWorldCDS(0).env

    def touch(door: tuple, drawer: tuple) -> bool:
        env.model.body("door").pos, env.model.body("drawer").pos = door, drawer
        tree = env.model.body_rootid[env.model.geom_bodyid]  # [geoms]
        pairs = set()
        for angle in np.linspace(0, -2, 9):
            for way in np.linspace(0, -0.16, 5):
                env.data.joint("doorjoint").qpos, env.data.joint("goal_slidey").qpos = angle, way
                mujoco.mj_fwdPosition(env.model, env.data)
                pairs |= {frozenset(tree[[contact.geom1, contact.geom2]]) for contact in env.data.contact}
        return {env.model.body("door").id, env.model.body("drawer").id} in pairs

    for y in (0.85, 0.95):
        assert not touch((0.0, y, 0.15), APART["drawer"])
        assert touch((0.0, y, 0.15), (0.3, 0.9, 0.0))
    assert not touch(APART["door"], (0.3, 0.9, 0.0))


# Starts


@pytest.mark.parametrize("task", ALL)
def test_starts(task):
    """The task's object all over its box, the other apart; the hand where it should be; the goal at its distance."""
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
    assert np.all(places.min(0) <= low + 0.1 * (high - low)) and np.all(places.max(0) >= high - 0.1 * (high - low))
    assert places.mean(0) == pytest.approx((low + high) / 2, abs=0.02)
    goal = [(-0.3, -0.45, 0.0), (0.2, -0.2, 0.0), (0.0, -0.36, 0.09), (0.0, -0.16, 0.09)][task]
    assert observed[:, 18:] - places == pytest.approx(np.tile(goal, (40, 1)), abs=1e-6)
    handle = {"door": (0.19, -0.207, 0.0), "drawer": (0.0, -0.17, 0.09)}  # in their frames, closed
    assert observed[:, OWN[(task + 2) % 4]][:, :3] == pytest.approx(
        np.tile(handle[other] + np.array(APART[other]), (40, 1)), abs=2e-3
    )
    assert observed[:, :3] == pytest.approx(np.tile((-0.6 * (task == 1), 0.6, 0.2), (40, 1)), abs=0.02)
    assert np.all(observed[:, 3] > 0.9)  # the gripper is open


# Seeds


@pytest.mark.parametrize("task", ALL)
def test_seeded_episodes_do_not_depend_on_the_past(task):
    """The exact resume relies on this."""
    env = MetaWorldCDS(task)
    obs, _ = env.reset(seed=0)
    controller = Controller(task)
    for _ in range(120):  # moves the task's object
        obs, *_ = env.step(controller(obs))
    assert roll_out(env, 60, seed=11) == roll_out(MetaWorldCDS(task), 60, seed=11) != roll_out(env, 60, seed=12)


def test_the_scene_holds_nothing_twice():
    """Both of Meta-World's files hold the robot and the table; their meshes and textures take 20 MB."""
    model = MetaWorldCDS(0).env.model
    files = [
        mujoco.MjModel.from_xml_path(full_V3_path_for(f"sawyer_xyz/sawyer_{x}.xml")) for x in ("drawer", "door_pull")
    ]
    assert mujoco.mj_sizeModel(model) < 1.2 * max(map(mujoco.mj_sizeModel, files))
    assert (model.nq, model.nu, model.neq, model.nmocap) == (11, 2, 1, 1)


def test_render(opengl):
    tasks = [MetaWorldCDS(task, render_mode="rgb_array") for task in (1, 3)]
    for env in tasks:
        env.reset(seed=0)
    frames = [env.render() for env in tasks]
    for frame in frames:
        assert frame.shape == (320, 320, 3) and frame.std() > 20
        red, green, blue = (frame[..., i].astype(int) for i in range(3))
        goal = (green > 150) & (red < 60) & (blue < 60)
        drawer = (green > red + 30) & (green > blue + 30) & ~goal
        assert goal.sum() > 20 and drawer.sum() > 1000
    for env in tasks:
        env.close()
