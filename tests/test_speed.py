"""What speed.py measures does what the batched agent does, and its tables add up."""

import pytest
import speed
import torch
from helpers import fixed_noise, make_learner, random_batch, unstack

import qmp_mtsac
import qmp_sac

N, B, O, A = 3, 6, 5, 2


def plain_weights(agent, i):
    """The weights of task i, as in a plain agent."""
    state = {"log_alpha": agent.log_alpha.detach()[i : i + 1]}
    nets = {"actor.net": unstack(agent.actor.net, i)}
    for name in ("qf", "qf_target"):
        for q in range(2):
            nets[f"{name}.{q}"] = unstack(getattr(agent, name).net, q * N + i)
    for name, net in nets.items():
        state |= {f"{name}.{key}": value for key, value in net.state_dict().items()}
    return state


def test_plain_agents_choose_and_learn_as_the_batched_one_does():
    torch.manual_seed(1)
    args = qmp_sac.Args(hidden_sizes=(8, 8), q_lr=3e-4, policy_lr=3e-4)
    agent, optimizers = make_learner(qmp_sac, N, O, A, args)
    plain = [speed.plain_agent(O, A, args).double() for _ in range(N)]
    for i, one in enumerate(plain):
        one.load_state_dict(plain_weights(agent, i))

    own = torch.arange(N)
    for _ in range(10):
        obs = torch.randn(N, O).double()
        noise = torch.randn(N, A).double()
        mean, log_std = agent.actor(obs[None])
        chosen, _ = qmp_sac.q_switch(mean, log_std, agent.qf, obs)
        actions, _ = qmp_sac.squash(mean[chosen, own], log_std[chosen, own], noise)
        torch.testing.assert_close(speed.plain_act(plain, obs, noise), actions)

    plain_optimizers = [speed.make_optimizers(one) for one in plain]
    for _ in range(3):
        data = random_batch(qmp_sac, N, B, O, A)
        noise = torch.randn(2, N, B, A).double()
        with fixed_noise(noise):
            qmp_sac.update(agent, optimizers, data, args)
        for i, one in enumerate(plain):
            of_task = qmp_sac.Batch(*(field[i : i + 1] for field in data))
            with fixed_noise(noise[:, i : i + 1]):
                qmp_sac.update(one, plain_optimizers[i], of_task, args)
    for i, one in enumerate(plain):
        wanted = plain_weights(agent, i)
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9)


def test_a_table_of_every_part():
    args = speed.Args(("PointReach-v0",), tasks=(2,), batch_sizes=(4,), seconds=0)
    table = speed.main(args)
    point = table[table["environment"] == "PointReach-v0"].set_index("part of an iteration")
    assert list(point.index) == ["act", "step", "store", "update", "iteration"]
    assert set(point["N"]) == {5} and set(point["B"]) == {32}
    assert (point[["qmp", "base", "plain"]] > 0).all(axis=None)
    assert len(table) == 5 + 4  # tasks without environments do not step


def test_an_iteration_is_the_sum_of_its_parts():
    ms = {"act, qmp": 4, "act, base": 1, "act, plain": 9, "step": 2, "store": 1}
    ms |= {"update": 60, "update, plain": 120, "update, compiled": 30}
    args = qmp_sac.Args(train_frequency=6, gradient_steps=2, compile=True)
    iteration = speed.describe_iteration(ms, args).loc["iteration"]
    assert iteration["qmp"] == 4 + 2 + 1 + 20 and iteration["base"] == 1 + 2 + 1 + 20
    assert iteration["plain"] == 9 + 2 + 1 + 40 and iteration["compiled"] == 4 + 2 + 1 + 10
    assert iteration["plain / qmp"] == pytest.approx(52 / 27)


def test_the_plan_of_a_run(monkeypatch):
    """With a program that takes 3 s to start, 1 ms a step, 2 s an episode, 100 bytes a step."""

    def run_short(words, folder):
        args, _ = qmp_mtsac.parse_args(words[2:])
        steps = args.total_timesteps
        seconds = 3 + 0.001 * steps + 2 * args.eval_episodes
        return seconds, 5e8 + 100 * steps, 1e6 + 100 * steps

    monkeypatch.setattr(speed, "run_short", run_short)
    row = speed.plan("Maze-v0", "qmp_mtsac", updates=50)
    # Ten episodes in every 50,000 steps; the replay holds a million steps of the twelve.
    assert row["hours per million steps"] == pytest.approx((1000 + 20 * 20) / 3600)
    assert row["memory (GB)"] == pytest.approx(0.6)
    assert row["checkpoint (GB)"] == pytest.approx(0.101)
    assert row["days"] == pytest.approx(1400 * 12 / 86400)


def test_a_planned_run_trains(tmp_path):
    words = ["python", "qmp_sac.py", "--total-timesteps", "300", "--learning-starts", "100"]
    seconds, memory, size = speed.run_short([*words, "--hidden-sizes", "4"], tmp_path / "run")
    assert seconds > 0.5 and memory > 1e8
    assert size == (tmp_path / "run" / "checkpoint.pt").stat().st_size
