"""The loops that speed.py measures do what the stacked scripts do, so that their times may be compared."""

import dataclasses

import env_speed
import gymnasium as gym
import numpy as np
import pytest
import speed
import torch

N, B = 3, 6


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def layers(net):
    return [module for module in net.modules() if hasattr(module, "weight")]


def pairs(agent, loop):
    """Every stacked layer with the slice of it that belongs to a plain layer, and that layer."""
    for stack, nets in ((agent.actor, [loop.actor]), (agent.qf, [loop.qf1, loop.qf2])):
        stacks = layers(stack)
        for k, net in enumerate(nets):
            if net.shared:
                *trunk, head = stacks
                yield from ((layer, k, plain) for layer, plain in zip(trunk, layers(net.trunk), strict=True))
                yield from ((head, k * N + i, plain) for i, plain in enumerate(net.heads))
            else:
                for i, plain in enumerate(net.heads):
                    yield from ((a, k * N + i, b) for a, b in zip(stacks, layers(plain), strict=True))


def both(script, fused=True):
    """A stack, and a loop that starts with the same weights; the module, arguments and replay."""
    module, args, agent, rb = speed.example(script, N, B, hidden_sizes=(8, 8), alpha=0.3)
    loop = speed.Loop(script, N, args, fused)
    with torch.no_grad():
        for stacked, k, plain in pairs(agent, loop):
            plain.weight.copy_(stacked.weight[k].T)
            plain.bias.copy_(stacked.bias[k, 0])
    for target, qf in ((loop.qf1_target, loop.qf1), (loop.qf2_target, loop.qf2)):
        for p, q in zip(sum(target.groups(), []), sum(qf.groups(), []), strict=True):
            p.data.copy_(q.data)
    return module, args, agent, rb, loop


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("script", speed.SCRIPTS)
def test_loop_learns_as_the_stack_does(script, fused):
    module, args, agent, rb, loop = both(script, fused)
    if script == "qmp_uds":
        args = dataclasses.replace(args, sharing_quantile=0.3)
        loop.args = args
    if script == "qmp_dnc":
        args.kl_coef = "0.1"
        agent = agent._replace(kl_coef=0.1 * (1 - torch.eye(N)))
    for seed in range(3):
        data = (rb.sample(B), rb.sample_others(B, torch.zeros(N))) if script == "qmp_uds" else (rb.sample(B),)
        for update in (lambda: module.update(agent, *data, args), lambda: loop.update(*data)):  # noqa: B023
            torch.manual_seed(seed)
            update()
    for stacked, k, plain in pairs(agent, loop):
        torch.testing.assert_close(plain.weight, stacked.weight[k].T, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(plain.bias, stacked.bias[k, 0], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(torch.stack(loop.log_alphas), agent.log_alpha, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("script", speed.SCRIPTS)
def test_loop_chooses_as_the_stack_does(script):
    module, args, agent, _, loop = both(script)
    obs, noise = torch.randn(N, speed.O), torch.randn(N, N, 1, speed.A)
    chosen, *_ = module.q_switch(agent.actor, agent.qf, agent.log_alpha.exp(), obs, noise, torch.zeros(N, N), args)
    assert [int(i) for i in loop.select(obs, noise[:, :, 0])] == chosen.tolist()
    assert [int(i) for i in loop.select_singly(obs, noise[:, :, 0])] == chosen.tolist()


def test_measures_and_draws(tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(speed, "TASKS", (1, 2))
    monkeypatch.setattr(speed, "THOUSAND", 2)
    monkeypatch.setattr(speed, "SETTINGS", {"PointReach-v0": None})
    monkeypatch.setattr(speed, "against_arithmetic", lambda seconds: fake)
    where = {"part": "arithmetic", "N": 5, "B": 32}
    fake = [speed.row(**where, variant=name, times=np.ones(3), ratios=np.ones(3)) for name in ("products", "update")]
    fake += [speed.row(**where, variant=name, times=np.ones(3), ratios=np.ones(3)) for name in ("compiled", "ideal")]
    speed.main(speed.Args(seconds=0, output=tmp_path))
    rows = speed.read(tmp_path / "speed.csv")
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    for script in speed.SCRIPTS:
        assert len(speed.select(rows, script=script, part="selection")) == 2 * 3
        assert len(speed.select(rows, script=script, part="update")) == 2 * 3
    turn = speed.select(rows, env="PointReach-v0", variant="period 1")
    assert [row["part"] for row in turn] == [*speed.Turn.PARTS, "turn"]
    assert all(float(row["quartile_1"]) <= float(row["ms"]) <= float(row["quartile_3"]) for row in rows if row["ms"])
    text = speed.tables(rows)
    assert "| PointReach-v0 |" in text and "| 5 | 32 |" in text


def test_products_are_those_of_an_update():
    torch.set_default_dtype(torch.float32)
    for size in ((2, 4), (3, 7)):
        assert speed.flops(speed.products(*size)) == speed.flops(speed.updaters("qmp_sac", *size)["stacked"])


def test_env_speed_counts_the_steps_of_all_tasks(monkeypatch):
    """On a clock that moves a second with every reading, a block lasts one second, whatever it does in it."""
    ticks = iter(range(1000))
    monkeypatch.setattr(env_speed.time, "perf_counter", lambda: next(ticks))
    single = gym.make("qmp/PointReach-v0", task=3)
    single.reset()
    assert env_speed.block(single, 120) == 120  # past its 50 steps, with resets
    everything = env_speed.envs.make_vec("PointReach-v0", 0)
    everything.reset()
    assert env_speed.block(everything, 120) == 4 * 120


def test_env_speed_writes_a_row_for_each_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(
        env_speed.envs, "TASKS", {name: env_speed.envs.TASKS[name] for name in ("Maze-v0", "Walker2dMT4-v0")}
    )
    env_speed.main(env_speed.Args(blocks=3, seconds=0, output=tmp_path / "env_speed.csv"))
    maze, walker = speed.read(tmp_path / "env_speed.csv")
    assert (maze["env_id"], maze["package"], maze["ratio"]) == ("Maze-v0", "", "")
    assert (walker["env_id"], walker["package"]) == ("Walker2dMT4-v0", "Walker2d-v5")
    names = ("steps_per_second", "package_steps_per_second", "ratio", "all_tasks", "all_tasks_async")
    assert all(float(walker[name]) > 0 for name in names)
