"""What speed.py measures against does what the stacked agent does; every part of a turn counts; peers take turns."""

from types import SimpleNamespace

import gymnasium as gym
import pandas as pd
import peers
import pytest
import speed
import torch

import qmp_sac

N, B, O, A = 3, 6, 5, 2


@pytest.fixture
def both():
    """An agent, and plain agents with the same weights, in double precision."""
    torch.manual_seed(1)
    args = qmp_sac.Args(hidden_sizes=(8, 8), alpha=0.3)
    agent, plain = qmp_sac.Agent(N, O, A, args).double(), [speed.plain_agent(O, A, args).double() for _ in range(N)]
    with torch.no_grad():
        for stacked, layer in pairs(agent, plain):
            layer.weight.copy_(stacked[0].T)
            layer.bias.copy_(stacked[1])
    for one in plain:
        one.qf_target.load_state_dict(one.qf.state_dict())
    return args, agent, plain


def pairs(agent, plain):
    """The weight and bias of every slice of a stack, with the plain layer of the same place."""
    for i, one in enumerate(plain):
        nets = (agent.actor.net, i, one.actor.net), *((agent.qf.net, q * N + i, one.qf[q]) for q in (0, 1))
        for net, k, plain_net in nets:
            for stacked, layer in zip(net, plain_net, strict=True):
                if hasattr(layer, "weight"):
                    yield (stacked.weight[k], stacked.bias[k, 0]), layer


def test_plain_agents_learn_as_the_stack_does(both, fixed_noise):
    args, agent, plain = both
    optimizers, of_plain = speed.optimizers_of(agent), [speed.optimizers_of(one) for one in plain]
    for _ in range(3):
        data = qmp_sac.Batch(
            *(torch.rand(shape).double() for shape in ((N, B, O), (N, B, A), (N, B), (N, B, O), (N, B)))
        )
        noise = torch.randn(2, N, B, A).double()
        with fixed_noise(noise):
            qmp_sac.update(agent, optimizers, data, args)
        for i, one in enumerate(plain):
            with fixed_noise(noise[:, i : i + 1]):
                qmp_sac.update(one, of_plain[i], qmp_sac.Batch(*(field[i : i + 1] for field in data)), args)
    for stacked, layer in pairs(agent, plain):
        torch.testing.assert_close((layer.weight.T, layer.bias), stacked, rtol=1e-7, atol=1e-9)


def test_plain_agents_choose_as_the_switch_does(both):
    _, agent, plain = both
    own = torch.arange(N)
    for _ in range(10):
        obs, noise = torch.randn(N, O).double(), torch.randn(N, A).double()
        mean, log_std = agent.actor(obs[None])
        chosen, _ = qmp_sac.q_switch(mean, log_std, agent.qf, obs)
        actions, _ = qmp_sac.squash(mean[chosen, own], log_std[chosen, own], noise)
        torch.testing.assert_close(speed.plain_act(plain, obs, noise), actions)


def test_a_table_of_every_part(tmp_path):
    where = {"env_ids": ("PointReach-v0", "Maze-v0"), "tasks": (2,), "seconds": 0, "csv": tmp_path / "speed.csv"}
    speed.main(speed.Args(**where))
    table = pd.read_csv(tmp_path / "speed.csv")
    maze = table[table["environment"] == "Maze-v0"].set_index("part of a turn")
    assert list(maze.index) == ["act", "step", "store", "update", "turn"] and set(maze["N"]) == {10}
    for column in ("qmp", "base", "plain"):
        assert maze[column].iloc[:-1].sum() == pytest.approx(maze[column].iloc[-1], rel=1e-2)
    assert list(table[table["environment"].isna()]["part of a turn"]) == ["act", "store", "update", "turn"]


def test_a_clock_times_the_steps_between_its_halts(monkeypatch, capsys):
    """On a processor that needs two seconds for a step of the environment, and 1,000 for the wait at a halt."""
    now, env = [0.0], gym.make("Pendulum-v1")
    env.reset(seed=0)
    result = env.step(env.action_space.sample())

    def pass_time(seconds, returns):
        now[0] += seconds
        return returns

    monkeypatch.setattr(peers.time, "process_time", lambda: now[0])
    monkeypatch.setattr(peers.sys, "stdin", SimpleNamespace(readline=lambda: pass_time(1000, "\n")))
    monkeypatch.setattr(env, "step", lambda action: pass_time(2, result))
    clock = peers.Clock(env)
    for _ in range(peers.WARM_UP + 2 * peers.STEPS + 1):
        assert clock.step(None) is result
    expected = [2 * peers.WARM_UP, 2 * peers.STEPS, 2 * peers.STEPS]
    assert [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()] == expected


def test_peers_take_turns(capfd):
    small = "qmp_sac.py --hidden-sizes 4 --batch-size 4"
    peers.main(ours=(small, f"{small} --no-qmp"), rounds=2)
    header, *rows = capfd.readouterr().out.splitlines()
    assert header.endswith(small) and [row.split(maxsplit=2)[2] for row in rows] == [small, f"{small} --no-qmp"]
    assert rows[0].split()[1] == "1.00" and all(float(number) > 0 for row in rows for number in row.split()[:2])
