"""How long is a turn of training, and its parts; what does the switch cost; what is gained by stacking N agents?

    python benchmark/speed.py                                         # a table, in some minutes
    python benchmark/speed.py --cuda                                  # on the GPU
    python benchmark/speed.py --env-ids --tasks 10 --batch-sizes 32 256 --compile   # ten tasks without environments

In a turn every task acts, steps and stores, and the turn's share of the updates is made: by qmp_sac.py with QMP,
without, with QMP by N agents of plain `torch.nn` modules, one after the other, and if asked for as with qmp_sac.py's
--compile. Times are medians in ms of rounds in which all take turns. Measure on an idle machine. Environments are
trained as in benchmark/run.py, tasks without one by the defaults.
"""

import copy
import itertools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from run import ROOT, command
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))
import qmp_sac  # noqa: E402
from envs import keep_freed_memory, make_vec  # noqa: E402


@dataclass
class Args:
    """What is measured, and for how long."""

    env_ids: tuple[str, ...] = ("PointReach-v0", "MultistageReacher-v0", "Maze-v0", "MetaWorldMT10-v3")
    """environments"""
    tasks: tuple[int, ...] = (1, 2, 5, 10, 25, 50)
    """numbers of tasks without environments"""
    batch_sizes: tuple[int, ...] = (32,)
    """of tasks without environments"""
    compile: bool = False
    """measure the compiled update too"""
    vectorization: Literal["sync", "async"] = "sync"
    """step the tasks in this process, or in a process each"""
    seconds: float = 10.0
    """time for each environment or number of tasks"""
    cuda: bool = False
    """measure on the GPU"""


def mlp(*sizes: int) -> nn.Sequential:
    """A perceptron of plain layers, with ReLU between them."""
    pairs = zip(sizes, sizes[1:], strict=False)
    return nn.Sequential(*[module for i, o in pairs for module in (nn.Linear(i, o), nn.ReLU())][:-1])


class PlainCritic(nn.ModuleList):
    """Twin critics of one task: obs [1, B, O], actions [1, B, A] -> [2, 1, B]."""

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([net(torch.cat([obs, actions], -1)).squeeze(-1) for net in self])


def plain_agent(O: int, A: int, args: qmp_sac.Args) -> qmp_sac.Agent:
    """The agent of one task, of plain modules."""
    agent = qmp_sac.Agent(1, O, A, args)
    agent.actor.net = mlp(O, *args.hidden_sizes, 2 * A)
    agent.qf = PlainCritic(mlp(O + A, *args.hidden_sizes, 1) for _ in range(2))
    agent.qf_target = copy.deepcopy(agent.qf).requires_grad_(False)
    return agent


@torch.no_grad()
def plain_act(agents: list[qmp_sac.Agent], obs: Tensor, noise: Tensor) -> Tensor:
    """Actions [N, A] in states [N, O] of the policies that the Q-switch chooses, by noise [N, A]: loops over agents."""
    means, log_stds = (
        torch.cat(x) for x in zip(*(agent.actor(obs[None]) for agent in agents), strict=True)
    )  # [P, N, A]
    actions = []
    for i, agent in enumerate(agents):
        scores = agent.qf(obs[i].expand(1, len(agents), -1), means[None, :, i].tanh()).amin(0)[0]  # [P]
        j = int(scores.argmax())
        actions.append(qmp_sac.squash(means[j, i], log_stds[j, i], noise[i])[0])
    return torch.stack(actions)


def optimizers_of(agent: qmp_sac.Agent) -> dict[str, torch.optim.Adam]:
    """An agent's optimisers, as qmp_sac.py makes them."""
    parameters = {"q": agent.qf.parameters(), "actor": agent.actor.parameters(), "alpha": [agent.log_alpha]}
    return {name: torch.optim.Adam(values, lr=3e-4, fused=True) for name, values in parameters.items()}


def measure(functions: dict[str, Callable], seconds: float, cuda: bool) -> dict[str, float]:
    """Median time in ms of each function, in rounds of all of them, for so long."""
    times, end = {name: [] for name in functions}, time.time() + seconds
    while time.time() < end or len(next(iter(times.values()))) < 4:
        for name, function in functions.items():
            begin = time.perf_counter()
            function()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(values[1:])) for name, values in times.items()}  # the first was to warm up


def parts(envs, N: int, args: qmp_sac.Args, device: torch.device) -> dict[str, Callable]:
    """Functions that do the parts of a turn, in `envs` or with N tasks without; compiled too with `args.compile`."""
    O, A = 15, 6  # as in MultistageReacher
    if envs:
        N, O, A = envs.num_envs, envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    obs = envs.reset()[0] if envs else np.random.default_rng(0).normal(size=(N, O))
    zeros, B = np.zeros(N, dtype=np.int64), args.batch_size
    agent, plain = qmp_sac.Agent(N, O, A, args).to(device), [plain_agent(O, A, args).to(device) for _ in range(N)]
    optimizers, of_plain = optimizers_of(agent), [optimizers_of(one) for one in plain]
    rb = qmp_sac.ReplayBuffer(N, O, A, 5_000, device)
    for field in rb.data:
        field.uniform_(-1, 1)
    rb.data.terminations.zero_()
    rb.added = rb.capacity
    qmp, base = (qmp_sac.Mixture(agent, args, probability) for probability in (args.own_policy_prob, 1.0))
    actions = qmp.act(obs, zeros)

    def plain_update() -> None:
        data = rb.sample(B)
        for i, one in enumerate(plain):
            qmp_sac.update(one, of_plain[i], qmp_sac.Batch(*(field[i : i + 1] for field in data)), args)

    def plain_choice() -> None:
        states = torch.as_tensor(obs, dtype=torch.float32, device=device)
        plain_act(plain, states, torch.randn(N, A, device=device)).cpu()

    functions = {"step": lambda: envs.step(actions)} if envs else {}
    if args.compile:
        compiled = torch.compile(qmp_sac.update)
        functions["update, compiled"] = lambda: compiled(agent, optimizers, rb.sample(B), args)
    return functions | {
        "act": lambda: qmp.act(obs, zeros),
        "act, base": lambda: base.act(obs, zeros),
        "act, plain": plain_choice,
        "store": lambda: rb.add(obs, actions, zeros, obs, zeros),
        "update": lambda: qmp_sac.update(agent, optimizers, rb.sample(B), args),
        "update, plain": plain_update,
    }


def main(args: Args) -> pd.DataFrame:
    """Measure everything. Returns the table that is printed."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as in the scripts
    device, rows = torch.device("cuda" if args.cuda else "cpu"), []
    columns = ["qmp", "base", "plain", *["compiled"] * args.compile]
    for case, B in [*((env_id, None) for env_id in args.env_ids), *itertools.product(args.tasks, args.batch_sizes)]:
        torch.compiler.reset()  # else the compiler gives up after some cases, and the update is not compiled
        envs = make_vec(case, 1, args.vectorization) if isinstance(case, str) else None
        flags = command(case, "qmp_sac", "qmp", 1)[4:] if envs else ["--batch-size", str(B)]
        qmp_args = tyro.cli(qmp_sac.Args, args=[*flags, *["--compile"] * args.compile])
        ms = measure(parts(envs, case, qmp_args, device), args.seconds, args.cuda)
        shares = {"act": 1, "step": 1, "store": 1, "update": qmp_args.gradient_steps / qmp_args.train_frequency}
        turn = {
            part: [share * ms.get(f"{part}, {column}", ms[part]) for column in columns]
            for part, share in shares.items()
            if part in ms
        }
        turn["turn"] = np.sum(list(turn.values()), axis=0)
        name, N = (case, envs.num_envs) if envs else ("", case)
        rows += [[name, N, qmp_args.batch_size, part, *values] for part, values in turn.items()]
    table = pd.DataFrame(rows, columns=["environment", "N", "B", "part of a turn", *columns])
    table["qmp / base"], table["plain / qmp"] = table["qmp"] / table["base"], table["plain"] / table["qmp"]
    where = torch.cuda.get_device_name() if args.cuda else f"one thread of {os.cpu_count()}"
    print(f"ms on {where}, PyTorch {torch.__version__}\n{table.to_string(index=False, float_format='%.3g')}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Args))
