"""What speed.py measures against does what the stacked agents do; env_speed.py and peers.py count steps."""

from types import SimpleNamespace

import env_speed
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
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(1)
    args = qmp_sac.Args(hidden_sizes=(8, 8), alpha=0.3)
    agent, plain = qmp_sac.Agent(N, O, A, args), [speed.PlainAgent(O, A, args, torch.device("cpu")) for _ in range(N)]
    with torch.no_grad():
        for stacked, layer in pairs(agent, plain):
            layer.weight.copy_(stacked[0].T)
            layer.bias.copy_(stacked[1])
    for one in plain:
        one.qf_target.load_state_dict(one.qf.state_dict())
    yield args, agent, plain
    torch.set_default_dtype(torch.float32)


def pairs(agent, plain):
    """The weight and bias of every slice of a stack, with the plain layer of the same place."""
    for i, one in enumerate(plain):
        for net, k, module in (
            (agent.actor.net, i, one.actor),
            *((agent.qf.net, q * N + i, one.qf[q]) for q in (0, 1)),
        ):
            for stacked, layer in zip(net, module, strict=True):
                if hasattr(layer, "weight"):
                    yield (stacked.weight[k], stacked.bias[k, 0]), layer


def test_plain_agents_learn_as_the_stack_does(both):
    args, agent, plain = both
    parameters = {"q": agent.qf.parameters(), "actor": agent.actor.parameters(), "alpha": [agent.log_alpha]}
    optimizers = {name: torch.optim.Adam(values, lr=3e-4, fused=True) for name, values in parameters.items()}
    shapes = (N, B, O), (N, B, A), (N, B), (N, B, O), (N, B)
    for seed in range(3):
        data = qmp_sac.Batch(*(torch.rand(shape) for shape in shapes))
        torch.manual_seed(seed)
        qmp_sac.update(agent, optimizers, data, args)
        torch.manual_seed(seed)
        noise = torch.randn(2, N, B, A)
        for i, one in enumerate(plain):
            one.update(qmp_sac.Batch(*(field[i] for field in data)), noise[:, i])
    for stacked, layer in pairs(agent, plain):
        torch.testing.assert_close((layer.weight.T, layer.bias), stacked, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(
        torch.stack([one.log_alpha for one in plain]), agent.log_alpha.detach(), rtol=1e-9, atol=0
    )


def test_plain_agents_choose_as_the_switch_does(both):
    _, agent, plain = both
    for _ in range(10):
        obs, noise = torch.randn(N, O), torch.randn(N, A)
        mean, log_std = agent.actor(obs.unsqueeze(0))
        chosen, _ = qmp_sac.q_switch(mean, log_std, agent.qf, obs)
        own = torch.arange(N)
        expected, _ = qmp_sac.squash(mean[chosen, own], log_std[chosen, own], noise)
        torch.testing.assert_close(speed.plain_act(plain, obs, noise), expected)


def test_a_table_of_every_part(tmp_path):
    where = {"env_ids": ("PointReach-v0", "Maze-v0"), "tasks": (2,), "seconds": 0, "csv": tmp_path / "speed.csv"}
    speed.main(speed.Args(**where))
    table = pd.read_csv(tmp_path / "speed.csv")
    maze = table[table["environment"] == "Maze-v0"].set_index("part of a turn")
    assert list(maze.index) == ["act", "step", "store", "update", "turn"] and set(maze["N"]) == {10}
    for column in ("qmp", "base", "plain"):
        assert maze[column].iloc[:-1].sum() == pytest.approx(maze[column].iloc[-1], rel=1e-2)
    assert list(table[table["environment"].isna()]["part of a turn"]) == ["act", "store", "update", "turn"]


def test_env_speed_counts_the_steps_of_all_tasks(monkeypatch):
    """On a clock that moves a second with every reading, a block lasts one second, whatever it does in it."""
    ticks = iter(range(1000))
    monkeypatch.setattr(env_speed.time, "perf_counter", lambda: next(ticks))
    single = gym.make("qmp/PointReach-v0", task=3)
    single.reset()
    assert env_speed.block(single, 120) == 120  # past its 50 steps, with resets
    everything = env_speed.envs.make_vec("PointReach-v0", 0)
    everything.reset()
    assert env_speed.block(everything, 120) == 5 * 120


def test_env_speed_writes_a_row_for_each_environment(tmp_path):
    where = {"env_ids": ("Maze-v0", "Walker2dMT4-v0"), "output": tmp_path / "env_speed.csv"}
    env_speed.main(blocks=3, seconds=0, **where)
    maze, walker = pd.read_csv(tmp_path / "env_speed.csv").to_dict("records")
    assert maze["env_id"] == "Maze-v0" and pd.isna(maze["package"])
    assert (walker["env_id"], walker["package"]) == ("Walker2dMT4-v0", "Walker2d-v5")
    assert all(walker[name] > 0 for name in ("steps_per_second", "ratio", "all_tasks", "all_tasks_async"))


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
