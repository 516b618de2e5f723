"""envs/kitchen.py: the numbers of FrankaKitchen-v1, and rewards from the state."""

import math

import mujoco
import numpy as np
import pytest
from gymnasium_robotics.envs.franka_kitchen import kitchen_env

from envs import kitchen
from envs.kitchen import ELEMENTS, TASKS, KitchenMT10, load_model

every_task = pytest.mark.parametrize("task", range(10), ids=TASKS)
LIMITS = [0.1, 0.1, 0.1, *[0.3] * 7]  # of success
actions = np.random.default_rng(7).uniform(-1, 1, (60, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def package():
    """FrankaKitchen-v1 without noise."""
    return kitchen_env.KitchenEnv(robot_noise_ratio=0.0, object_noise_ratio=0.0)


def test_numbers_are_those_of_the_package(package):
    names = ["slide cabinet", "hinge cabinet", "bottom burner", "top burner", "light switch"]
    joints = "slide_cabinet right_hinge_cabinet knob_Joint_2 knob_Joint_4 light_switch".split()
    for element, name, joint in zip(ELEMENTS, names, joints, strict=True):
        indices = np.arange(30)[element.joints].tolist()
        assert indices == kitchen_env.OBS_ELEMENT_INDICES[name].tolist()
        assert list(element.active) == kitchen_env.OBS_ELEMENT_GOALS[name].tolist()
        for model in map(load_model, (False, True)):
            moving = model.joint(joint)
            assert moving.qposadr == (21 if element.name == "hinge-cabinet" else indices[0])
            assert moving.bodyid == model.site(element.site).bodyid
    robot = package.robot_env
    assert robot.frame_skip == kitchen.FRAME_SKIP and robot.dt == kitchen.STEP_SECONDS
    assert np.array_equal(kitchen.START, robot.init_qpos)
    limits = np.stack((kitchen.SERVO_LOW, kitchen.SERVO_HIGH)).T
    assert np.array_equal(limits, robot.robot_pos_bound[:9])


def test_physics_equal_the_package_bit_for_bit(package, monkeypatch):
    """In contact with the kitchen, too, though the model lacks the geoms that are only seen."""
    monkeypatch.setattr(kitchen, "NOISE", np.zeros(30))
    env = KitchenMT10(0)
    env.reset(seed=0)
    package.reset(seed=0)
    for action in 0.3 * actions + np.eye(9)[0] * -0.4:
        obs = env.step(action)[0]
        theirs = package.step(action)[0]["observation"]
        assert env.data.qpos.tolist() == package.data.qpos.tolist()
        assert obs[:30].tolist() == theirs[np.r_[:9, 18:39]].astype(np.float32).tolist()
    assert np.abs(env.data.qpos - env.start)[9:].max() > 0.1  # something was pushed


@every_task
def test_starts_at_the_goal_of_the_opposite_task(task):
    env, opposite = KitchenMT10(task), KitchenMT10(task ^ 1)
    joints = env.element.joints
    env.reset(seed=task)
    assert env.data.qpos[joints].tolist() == opposite.goal[joints].tolist()
    others = np.delete(np.arange(30), joints)
    assert env.data.qpos[others].tolist() == kitchen.START[others].tolist()
    assert not env.data.qvel.any() and not np.delete(env.goal, joints).any()
    inactive = env.goal[joints] if task % 2 else opposite.goal[joints]
    assert np.abs(inactive).max() < 0.007


def reach_distances(env):
    """Of the fingers' midpoint and of `end_effector` from the element, by the other model."""
    model = load_model(visual=True)
    data = mujoco.MjData(model)
    data.qpos[:] = env.data.qpos
    mujoco.mj_forward(model, data)
    fingers = (data.body("panda0_leftfinger").xpos + data.body("panda0_rightfinger").xpos) / 2
    site = data.site(env.element.site).xpos
    return math.dist(fingers, site), math.dist(data.site("end_effector").xpos, site)


def gaussian(x, bound, start):
    """A Gaussian of the distance beyond `bound` whose value at `start` is 0.1."""
    deviation = abs(start - bound) / math.sqrt(2 * math.log(10))
    return math.exp(-0.5 * (max(0.0, x - bound) / deviation) ** 2)


@every_task
def test_servos_and_rewards(task):
    """Servos start from the observed position, with actions clipped; rewards until the goal."""
    env = KitchenMT10(task)
    obs, _ = env.reset(seed=task)
    joints, limit = env.element.joints, LIMITS[task]
    d0, r0 = math.dist(env.start[joints], env.goal[joints]), reach_distances(env)[1]
    rewards = []
    for share, action in zip(np.linspace(0, 0.9 * (1 - limit / d0), 25), actions, strict=False):
        target = obs[:9] + 0.16 * np.clip(2 * action, -1, 1)
        env.data.qpos[joints] = (1 - share) * env.start[joints] + share * env.goal[joints]
        obs, reward, terminated, truncated, info = env.step(2 * action)
        target = np.clip(target, kitchen.SERVO_LOW, kitchen.SERVO_HIGH)
        assert env.data.ctrl == pytest.approx(target, abs=1e-6)
        d, r = math.dist(obs[joints], env.goal[joints]), reach_distances(env)[0]
        expected = 20 * (0.4 * gaussian(d, limit, d0) + 0.6 * gaussian(r, 0.08, r0) - 1)
        assert d >= limit and reward == pytest.approx(expected, abs=5e-5) and -20 <= reward <= 0
        assert type(reward) is float and info == {"success": False}
        assert not terminated and not truncated
        rewards.append(reward)
    assert max(rewards) > min(rewards) + 1
    env.data.qpos[joints] = 0.02 * env.start[joints] + 0.98 * env.goal[joints]
    _, reward, terminated, truncated, info = env.step(np.zeros(9, np.float32))
    assert reward == 20 * 140 and terminated is True and truncated is False
    assert info == {"success": True}


def test_render(opengl):
    """The goal is drawn in green where the door is to go: on the right, or to the left of it."""
    greens = []
    for env in [KitchenMT10(task, render_mode="rgb_array") for task in (1, 0)]:
        env.reset(seed=0)
        frame = env.render()
        assert frame.shape == (320, 320, 3) and frame.std() > 20
        is_green = np.all(frame[..., 1:2] > frame[..., ::2] + 60.0, axis=2)
        greens.append(np.flatnonzero(is_green) % 320)
    assert min(map(len, greens)) > 500 and greens[0].mean() + 40 < greens[1].mean()
