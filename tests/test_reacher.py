"""envs/reacher.py: model, rewards, stages, pictures; a controller solves every task."""

import math

import mujoco
import numpy as np
import pytest

from envs.reacher import MultistageReacher

S0, S1, S2, S3 = (0.2, 0.3, 0.5), (0.3, 0.0, 0.3), (0.4, -0.3, 0.4), (0.4, 0.3, 0.2)
GEARS = np.array([5.0, 10.0, 10.0, 10.0, 10.0, 10.0])
INITIAL_POSE = np.array([0.0, 0.0, 0.0, 0.0, -2.8, 0.0])


def hand_position(env):
    """Where the hand is at the observed angles, from a simulation of its own."""
    data = mujoco.MjData(env.model)
    data.qpos[:] = env.data.qpos
    mujoco.mj_forward(env.model, data)
    return data.body("hand").xpos


def controller(env):
    """A spring and a damper pull the hand to its sub-goal, gravity being made up for.

    Joint 2 is too weak for some places: while the hand is too low, the elbow folds the arm.
    """
    data = env.data
    jacobian = np.zeros((3, 6))
    mujoco.mj_jacBody(env.model, data, jacobian, None, env.model.body("hand").id)
    error = env.goals[env.stage] - env.data.xpos[env.hand]
    force = 150.0 * (error + [0.0, 0.0, 0.03]) - 25.0 * (jacobian @ data.qvel)
    torque = data.qfrc_bias + jacobian.T @ force - 0.1 * data.qvel
    if abs(torque[1]) > GEARS[1] and error[2] > 0.03:
        torque[2] = data.qfrc_bias[2] + 100.0 * (0.7 - data.qpos[2]) - 0.5 * data.qvel[2]
    return np.clip(torque / GEARS, -1.0, 1.0).astype(np.float32)


def expected_reward(task, distance, action, data, stages):
    control = -0.01 * np.sum(action.astype(float) ** 2)
    control -= 1e-3 * np.abs(data.qvel).mean() + 1e-5 * np.abs(data.qacc).mean()
    if task == 1:
        return control - distance - 2 + 200 * (distance < 0.05)
    if task == 4:
        return control - distance
    return control - 0.4 * (3 - stages) - distance * (task != 3)


def test_model():
    model = MultistageReacher(0).model
    assert (model.nq, model.nv, model.nu) == (6, 6, 6)
    assert (model.opt.timestep, model.opt.iterations) == (0.01, 10)
    assert model.opt.integrator == mujoco.mjtIntegrator.mjINT_EULER
    assert model.body_mass.sum() == pytest.approx(4.990241)
    assert model.actuator_gear[:, 0].tolist() == GEARS.tolist()
    assert model.actuator_ctrlrange.tolist() == [[-1, 1]] * 6 and model.actuator_ctrllimited.all()
    assert model.jnt_range.tolist() == [[-0.8, 0.8], [-1.5, 0.7]] + [[-0.698132, 0.698132]] * 4
    assert model.jnt_limited.all() and model.qpos0.tolist() == INITIAL_POSE.tolist()
    assert set(model.dof_damping) == {0.5} and set(model.dof_armature) == {0.01}
    assert set(model.geom_margin) == {0.001}
    hand = model.geom(model.ngeom - 1)  # it begins at its joint and ends 12 cm from it
    radius, half_length, _ = hand.size
    assert np.linalg.norm(hand.pos) == pytest.approx(half_length)
    assert 2 * half_length + radius == pytest.approx(0.11698, abs=1e-5)
    env = MultistageReacher(4)  # its goal is the default pose, where gravity pulls with 10.7 N m
    assert np.all(env.goals == env.data.xpos[env.hand])
    assert env.goals[0] == pytest.approx([0.41, 0.1192, 0.2394], abs=1e-4)
    assert env.data.qfrc_bias[1] == pytest.approx(-10.715, abs=0.001)


def test_links_collide_with_the_floor_only():
    env = MultistageReacher(0)
    env.reset(seed=0)
    floor_contacts = 0
    for _ in range(100):
        env.step(np.zeros(6, np.float32))  # it sinks
        assert all(0 in pair for pair in env.data.contact.geom)  # geom 0 is the floor
        floor_contacts += env.data.ncon
    assert floor_contacts > 50 and env.data.xpos[env.hand, 2] > 0.0


@pytest.mark.parametrize(
    "task, goals", enumerate([(S0, S1, S2), (S0, S1, S3), (S1, S3, S2), (S1, S2, S0), None])
)
def test_controller_solves_every_task(task, goals):
    """In 200 steps. Stages, observations, rewards and metrics are checked at every step."""
    env = MultistageReacher(task)
    assert env.metadata["metrics"] == ("first_stage", "stages_completed")
    start = hand_position(env)
    env.reset(seed=0)
    stages = inside = 0
    for _ in range(200):
        assert stages < 3
        action = controller(env)
        obs, reward, terminated, truncated, info = env.step(action)
        goal = start if task == 4 else goals[stages]
        distance = np.linalg.norm(hand_position(env) - goal)
        inside += distance < 0.05
        stages = inside // 30 if task == 4 else inside
        assert list(info) == ["success", "first_stage", "stages_completed"]
        assert list(info.values()) == [stages == 3, inside > 0, stages]
        assert obs[:12].tolist() == np.float32([*env.data.qpos, *env.data.qvel]).tolist()
        assert obs[12:].tolist() == [stages == 0, stages == 1, stages == 2]
        expected = expected_reward(task, distance, action, env.data, stages)
        assert type(reward) is float and reward == pytest.approx(expected, abs=1e-9)
        assert terminated == (stages == 3) and not truncated
        if terminated:
            break
    assert stages == 3


def test_first_stage_of_staying_is_one_step_near_the_start():
    """Which is less than any stage, and free; it is kept when the hand has left."""
    env, rest = MultistageReacher(4), np.zeros(6, np.float32)
    for seed in range(20):
        env.reset(seed=seed)
        assert env.step(rest)[4] == {"success": False, "first_stage": True, "stages_completed": 0}
    env.data.qpos[1] = -1.0
    assert env.step(rest)[4]["first_stage"] and math.dist(hand_position(env), env.goals[0]) > 0.05
    env.reset(seed=0)
    env.data.qpos[1] = -1.0
    assert not env.step(rest)[4]["first_stage"]


def test_render_shows_the_current_goal(opengl):
    env = MultistageReacher(0, render_mode="rgb_array")  # S0 is blue, S2 green
    env.reset(seed=0)
    counts = []
    for stage in (0, 2):
        env.stage = stage
        frame = env.render().astype(int)
        green = frame[..., 1] > frame[..., ::2].max(-1) + 40
        blue = frame[..., 2] > frame[..., :2].max(-1) + 40
        counts.append((blue.sum(), green.sum()))
    (blue, green), (blue_later, green_now) = counts
    assert blue > 200 and blue_later == 0 and green_now > 4 * green > 0
