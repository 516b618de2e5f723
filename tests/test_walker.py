"""envs/walker.py: model, rewards recomputed from the state, falls, the ceiling, full episodes."""

from unittest import mock

import gymnasium as gym
import mujoco
import numpy as np
import pytest

from envs.walker import EPISODE_STEPS, TASKS, Walker2dMT4, make_tasks

FORWARD, BACKWARD, BALANCE, CRAWL = range(4)
# Joint angles as if sitting on a chair: a PD controller brings them to rest from any start.
SITTING = np.array([-1.15, -0.84, 0.47, -0.15, -0.73, 0.51])
LYING = np.array([8.0, 0.5, 1.5, 0, 0, 0, 0, 0, 0])  # qpos under the ceiling, in the air


def put(env, qpos):
    """Step without action from the given state, at rest."""
    env.reset(seed=0)
    env.data.qpos[:], env.data.qvel[:] = qpos, 0.0
    return env.step(np.zeros(6, np.float32))


def test_model_is_gymnasiums_but_for_a_foot_and_the_ceiling():
    original = gym.make("Walker2d-v5").unwrapped.model
    for task in range(4):
        model = Walker2dMT4(task).model
        assert model.ngeom == original.ngeom + (task == CRAWL)
        names = "body_mass body_inertia body_pos jnt_range dof_damping actuator_gear qpos0"
        for name in names.split():
            expected = getattr(original, name)
            assert np.array_equal(getattr(model, name)[: len(expected)], expected)
        assert (model.opt.timestep, model.opt.integrator) == (0.002, mujoco.mjtIntegrator.mjINT_RK4)
        geoms = map(original.geom, range(original.ngeom))
        frictions = {geom.name: geom.friction.tolist() for geom in geoms}
        assert frictions["foot_geom"] == frictions["foot_left_geom"] == [1.9, 0.1, 0.1]
        frictions["foot_geom"] = [0.9, 0.1, 0.1]
        assert {name: model.geom(name).friction.tolist() for name in frictions} == frictions
    ceiling = model.geom("ceiling")
    assert ceiling.pos.tolist() == [8, 0, 1] and ceiling.size.tolist() == [6, 2, 0.1]


def test_dynamics_are_gymnasiums():
    """From the same state, under the same actions, with the same foot: those of Walker2d-v5."""
    theirs, ours = gym.make("Walker2d-v5").unwrapped, Walker2dMT4(FORWARD)
    theirs.model.geom("foot_geom").friction[0] = 0.9
    theirs.reset(seed=0), ours.reset(seed=0)
    theirs.set_state(ours.data.qpos.copy(), ours.data.qvel.copy())
    for action in np.random.default_rng(0).uniform(-1, 1, (60, 6)).astype(np.float32):
        # Rounding grows at contacts.
        seen = ours.step(action)[0], theirs.step(action)[0]
        np.testing.assert_allclose(*seen, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("task", range(4))
def test_reward(task):
    """Recomputed from the states around it, with kinematics of its own, falls among the steps."""
    env, rng = Walker2dMT4(task), np.random.default_rng(task)
    data = mujoco.MjData(env.model)
    env.reset(seed=task)
    fast = 0
    for step in range(120):
        if step % 40 == 20:
            env.data.qpos[0], env.data.qvel[0] = -3, rng.uniform(-8, 8)  # away from the ceiling
        before = env.data.qpos.copy()
        action = rng.uniform(-1, 1, 6).astype(np.float32)
        obs, reward, *_ = env.step(action)
        data.qpos[:] = env.data.qpos
        mujoco.mj_forward(env.model, data)
        z = {name: data.body(name).xpos[2] for name in ("torso", "foot", "foot_left")}
        v, *_, right, _, _, left = (env.data.qpos - before) / 0.008
        fast += v > 3
        stretched = abs(1.1 - (z["torso"] - max(z["foot"], z["foot_left"])))
        alive = 1 + 0.1 * np.cos(env.data.qpos[2]) - 0.001 * np.square(action.astype(float)).sum()
        feet = 0.01 * (abs(right) + abs(left))
        expected = {
            FORWARD: 3 - abs(v - 3) + alive - stretched - feet,
            BACKWARD: 3 - abs(-v - 3) + alive - stretched - feet,
            BALANCE: -abs(v) + alive - 0.5 * stretched,
            CRAWL: 2 * (3 - abs(v - 3)) + alive - feet,
        }
        assert type(reward) is float and reward == pytest.approx(expected[task], abs=1e-9)
        seen = [*env.data.qpos[1:], *np.clip(env.data.qvel, -10, 10)]
        assert obs.tolist() == np.float32(seen).tolist()
    assert fast


@pytest.mark.parametrize("task, random_steps", [(FORWARD, 5), (BALANCE, 10)])
def test_starts(task, random_steps):
    """Noise on every coordinate, then random actions."""
    env = Walker2dMT4(task)
    with mock.patch.object(env, "_simulate") as simulate:
        for seed in range(50):
            env.reset(seed=seed)
            start = np.concatenate((env.data.qpos - env.model.qpos0, env.data.qvel))
            assert np.abs(start).max() <= 0.01 and len(np.unique(start)) == 18
    actions = np.stack([call.args[0] for call in simulate.call_args_list])
    assert len(actions) == 50 * random_steps
    assert np.abs(actions).max() <= 1 and actions.std(0) == pytest.approx(1 / 3**0.5, rel=0.1)


@pytest.mark.parametrize("task", range(4))
def test_full_episode_succeeds(task):
    """A PD controller holds a pose: no task is impossible. Success comes with step 1000 alone."""
    env = make_tasks()[TASKS[task]]()
    obs, _ = env.reset(seed=task)
    for step in range(1, EPISODE_STEPS + 1):
        action = np.clip(3 * (SITTING - obs[2:8]) - 0.1 * obs[11:], -1, 1).astype(np.float32)
        obs, _, terminated, truncated, info = env.step(action)
        assert not terminated and truncated is info["success"] is (step == EPISODE_STEPS)
    env.reset()
    assert env.step(action)[4] == {"success": False}  # the next episode counts from the start


@pytest.mark.parametrize("task", range(4))
def test_falling_terminates_without_success(task):
    env = Walker2dMT4(task)
    limit = 0.3 if task == CRAWL else 0.8
    for height in np.linspace(limit - 0.05, limit + 0.05, 10):
        _, _, terminated, _, info = put(env, [0, height, 1.5, 0, 0, 0, 0, 0, 0])
        assert terminated is bool(env.data.qpos[1] < limit) and info == {"success": False}
    env.steps = EPISODE_STEPS - 1
    env.data.qpos[1] = 0.2
    _, _, terminated, truncated, info = env.step(np.zeros(6, np.float32))
    assert terminated and not truncated and info == {"success": False}


def test_touching_the_ceiling_costs_ten_and_terminates():
    env = Walker2dMT4(CRAWL)
    for height in (0.6, 0.7, 0.86):
        _, reward, terminated, _, info = put(env, [*LYING[:1], height, *LYING[2:]])
        touched = height > 0.85  # half the torso's thickness below the ceiling
        assert terminated is touched and info == {"success": False}
        assert reward == pytest.approx(1 - 10 * touched, abs=0.5)
    # Before and behind it, and in a task that has none, one may stand.
    for task, x in ((CRAWL, 1.0), (CRAWL, 15.0), (FORWARD, 8.0)):
        _, _, terminated, *_ = put(Walker2dMT4(task), [x, 3.0, 0, -1, -1, 0, -1, -1, 0])
        assert terminated is False


def test_render(opengl):
    """The ceiling is clearly blue, and spans the frame: the camera has followed."""
    env = Walker2dMT4(CRAWL, render_mode="rgb_array")
    put(env, LYING)
    frame = env.render().astype(int)
    is_blue = frame[..., 2] > frame[..., :2].max(-1) + 50
    assert frame.shape == (240, 320, 3) and is_blue.mean() > 0.05
    assert is_blue[:, :60].any() and is_blue[:, -60:].any()
