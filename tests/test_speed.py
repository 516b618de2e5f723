"""What speed.py measures against does what the stacked agent does; every part of a turn counts; peers are compared."""

import numpy as np
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
            for stacked, layer in zip(net.layers, plain_net[::2], strict=True):
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


def test_a_table_of_every_part(monkeypatch):
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="eager"))  # code would take minutes to make
    args = speed.Args(("Maze-v0",), tasks=(2,), batch_sizes=(4,), compile=True, seconds=0)
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):  # of one case, not of both
        table = speed.main(args)
    maze = table[table["environment"] == "Maze-v0"].set_index("part of a turn")
    assert list(maze.index) == ["act", "step", "store", "update", "turn"] and set(maze["N"]) == {10}
    assert (maze[["qmp", "base", "plain", "compiled"]] > 0).all(axis=None)
    assert list(table["part of a turn"][table["environment"] == ""]) == ["act", "store", "update", "turn"]


def test_the_compiled_update_has_a_column(monkeypatch):
    """With made-up times: only the update of that column is another function's, the compiled one."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: lambda *x: compiled.append(f) or f(*x))

    def measure(functions, *_):
        functions["update, compiled"]()
        return {name: {"update, compiled": 3.0, "update": 5.0}.get(name, 1.0) for name in functions}

    monkeypatch.setattr(speed, "measure", measure)
    table = speed.main(speed.Args(env_ids=(), tasks=(2,), batch_sizes=(4, 8), compile=True))
    assert compiled == 2 * [qmp_sac.update] and table["B"].tolist() == 4 * [4] + 4 * [8]
    assert list(table["part of a turn"]) == 2 * ["act", "store", "update", "turn"]
    assert table["compiled"].tolist() == 2 * [1, 1, 3, 5] and table["qmp"].tolist() == 2 * [1, 1, 5, 7]


def test_the_time_of_a_peer_s_step(monkeypatch, capsys):
    """Where a start takes 7 s, a step and its updates of all ten of our tasks 0.02 s, and of a peer's one 0.004 s."""

    def seconds(command, folder):
        if "-c" in command:
            return 7 + 0.004 * int(command[-1].rpartition("learn(")[2].rstrip(")"))
        return 7 + 0.002 * int(command[command.index("--total-timesteps") + 1])

    monkeypatch.setattr(peers, "seconds", seconds)
    peers.main(ours=("qmp_sac.py --no-qmp",), peers=("sbx=/python",), rounds=3)
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split(maxsplit=2) for row in rows] == [
        ["2.00", "1.00", "qmp_sac.py --no-qmp"],
        ["4.00", "2.00", "sbx=/python"],
    ]


def test_ours_run_among_peers(monkeypatch, capsys):
    monkeypatch.setattr(peers, "STEPS", 101)
    peers.main(ours=("qmp_sac.py --hidden-sizes 4",), rounds=1, steps=20)
    ms, relation, program = capsys.readouterr().out.splitlines()[-1].split(maxsplit=2)
    assert np.isfinite(float(ms)) and (relation, program) == ("1.00", "qmp_sac.py --hidden-sizes 4")
