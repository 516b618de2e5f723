"""How long is an iteration of training? What do the switch, batched networks and compiling change?

    python benchmark/speed.py                            # parts of an iteration, in some minutes
    python benchmark/speed.py --cuda                     # on the GPU
    python benchmark/speed.py --env-ids --tasks 10 --batch-sizes 32 256 --compile
    python benchmark/speed.py --plan --env-ids Maze-v0   # hours, memory and disk of whole runs

In an iteration every task acts, steps and stores once, and the iteration's share of the updates is
made: by qmp_sac.py with QMP, without it, with QMP by N agents of plain `torch.nn` modules one after
the other, and with --compile by the compiled update. Times are medians in ms of rounds in which all
take turns. Environments are trained as in benchmark/run.py, tasks without one by the defaults.
Measure on an idle machine.

With --plan each script runs for a short while as in benchmark/run.py with the paper's budget, on
one core. Times are the processor's, so that other programs disturb them little. The replay grows
linearly, which gives the memory and the size of the last checkpoint. Linux and macOS only.
"""

import copy
import itertools
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
import tyro
from run import ROOT, SCRIPTS, SETTINGS, command
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))
import qmp_sac  # noqa: E402
from envs import MultiTaskEnv, make_tasks, make_vec  # noqa: E402

O, A = 15, 6  # of tasks without environments, as in MultistageReacher
COLUMNS = ["qmp", "base", "plain"]


@dataclass
class Args:
    """What is measured, and for how long."""

    env_ids: tuple[str, ...] = ("PointReach-v0", "MultistageReacher-v0", "Maze-v0")
    """environments"""
    tasks: tuple[int, ...] = (1, 2, 5, 10, 25, 50)
    """numbers of tasks without environments"""
    batch_sizes: tuple[int, ...] = (32,)
    """of tasks without environments"""
    compile: bool = False
    """measure the compiled update too"""
    vectorization: Literal["sync", "async"] = "sync"
    """step the tasks in this process, or each in a process of its own"""
    seconds: float = 10.0
    """time for each environment or number of tasks"""
    cuda: bool = False
    """measure on the GPU"""
    plan: bool = False
    """print what whole runs of the environments cost instead"""
    scripts: tuple[Literal[tuple(SCRIPTS)], ...] = tuple(SCRIPTS)
    """scripts of --plan"""
    updates: int = 100
    """updates that --plan measures"""


# PLAIN AGENTS, one for each task


def plain_mlp(*sizes: int) -> nn.Sequential:
    """A perceptron of plain layers, with ReLU between them."""
    layers = []
    for in_features, out_features in itertools.pairwise(sizes):
        layers += [nn.Linear(in_features, out_features), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PlainCritic(nn.ModuleList):
    """Twin critics of one task."""

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [1, B, O], actions [1, B, A] -> [2, 1, B]."""
        x = torch.cat([obs, actions], dim=-1)
        return torch.stack([net(x).squeeze(-1) for net in self])


def plain_agent(O: int, A: int, args: qmp_sac.Args) -> qmp_sac.Agent:
    """The agent of one task, of plain modules."""
    agent = qmp_sac.Agent(1, O, A, args)
    agent.actor.net = plain_mlp(O, *args.hidden_sizes, 2 * A)
    critics = [plain_mlp(O + A, *args.hidden_sizes, 1) for _ in range(2)]
    agent.qf = PlainCritic(critics)
    agent.qf_target = copy.deepcopy(agent.qf).requires_grad_(False)
    return agent


@torch.no_grad()
def plain_act(agents: list[qmp_sac.Agent], obs: Tensor, noise: Tensor) -> Tensor:
    """Actions [N, A] of the policies that the switch chooses in states [N, O], by loops."""
    outputs = [agent.actor(obs[None]) for agent in agents]
    means = torch.cat([mean for mean, _ in outputs])  # [P, N, A]
    log_stds = torch.cat([log_std for _, log_std in outputs])
    actions = []
    for i, agent in enumerate(agents):
        states = obs[i].expand(1, len(agents), -1)
        scores = agent.qf(states, means[None, :, i].tanh()).amin(0)[0]  # [P]
        best = int(scores.argmax())
        action, _ = qmp_sac.squash(means[best, i], log_stds[best, i], noise[i])
        actions.append(action)
    return torch.stack(actions)


def make_optimizers(agent: qmp_sac.Agent) -> dict[str, torch.optim.Adam]:
    """An agent's optimisers, as qmp_sac.py makes them."""
    return {
        "q": torch.optim.Adam(agent.qf.parameters(), lr=3e-4, fused=True),
        "actor": torch.optim.Adam(agent.actor.parameters(), lr=3e-4, fused=True),
        "alpha": torch.optim.Adam([agent.log_alpha], lr=3e-4, fused=True),
    }


# PARTS OF AN ITERATION


def fill_replay(N: int, O: int, A: int, device: torch.device) -> qmp_sac.ReplayBuffer:
    """A replay of random transitions."""
    rb = qmp_sac.ReplayBuffer(N, O, A, 5_000, device)
    for field in rb.data:
        field.uniform_(-1, 1)
    rb.data.terminations.zero_()
    rb.added = rb.capacity
    return rb


def make_parts(envs: MultiTaskEnv | None, N: int, args: qmp_sac.Args, device: torch.device) -> dict:
    """Functions that do the parts of an iteration, in `envs` or with N tasks without any."""
    obs = np.random.default_rng(0).normal(size=(N, O))
    shape = (N, O, A)
    if envs:
        obs, _ = envs.reset()
        shape = (N, obs.shape[1], envs.single_action_space.shape[0])
    steps = np.zeros(N, dtype=np.int64)
    agent = qmp_sac.Agent(*shape, args).to(device)
    optimizers = make_optimizers(agent)
    plain = [plain_agent(*shape[1:], args).to(device) for _ in range(N)]
    plain_optimizers = [make_optimizers(one) for one in plain]
    rb = fill_replay(*shape, device)
    mixture = qmp_sac.Mixture(agent, args, use_switch=True)
    own = qmp_sac.Mixture(agent, args, use_switch=False)
    actions = mixture.act(obs, steps)
    update = qmp_sac.update
    compiled = torch.compile(update)

    def act_plain() -> None:
        states = torch.as_tensor(obs, dtype=torch.float32, device=device)
        noise = torch.randn(shape[0], shape[2], device=device)
        plain_act(plain, states, noise).cpu()

    def update_plain() -> None:
        data = rb.sample(args.batch_size)
        for i, one in enumerate(plain):
            of_task = qmp_sac.Batch(*(field[i : i + 1] for field in data))
            update(one, plain_optimizers[i], of_task, args)

    parts = {
        "act, qmp": lambda: mixture.act(obs, steps),
        "act, base": lambda: own.act(obs, steps),
        "act, plain": act_plain,
        "store": lambda: rb.add(obs, actions, steps, obs, steps),
        "update": lambda: update(agent, optimizers, rb.sample(args.batch_size), args),
        "update, plain": update_plain,
    }
    if envs:
        parts["step"] = lambda: envs.step(actions)
    if args.compile:
        parts["update, compiled"] = lambda: compiled(
            agent, optimizers, rb.sample(args.batch_size), args
        )
    return parts


def measure(parts: dict[str, Callable], seconds: float, cuda: bool) -> dict[str, float]:
    """Median time in ms of each part, in rounds of all of them, for so long."""
    times = {name: [] for name in parts}
    end = time.time() + seconds
    rounds = 0
    while time.time() < end or rounds < 4:
        rounds += 1
        for name, function in parts.items():
            start = time.perf_counter()
            function()
            if cuda:
                torch.cuda.synchronize()
            times[name].append(1000 * (time.perf_counter() - start))
    # The first round warms up.
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def describe_iteration(ms: dict[str, float], args: qmp_sac.Args) -> pd.DataFrame:
    """Times of the parts of an iteration, a column for each way to do it."""
    columns = [*COLUMNS, "compiled"] if args.compile else COLUMNS
    shares = dict.fromkeys(("act", "step", "store"), 1.0)
    shares["update"] = args.gradient_steps / args.train_frequency
    rows = {}
    for part, share in shares.items():
        row = {}
        for column in columns:
            # The compiled update is measured with QMP's way to act.
            usual = ms.get(part, ms.get(f"{part}, qmp"))
            if usual is not None:
                row[column] = share * ms.get(f"{part}, {column}", usual)
        if row:
            rows[part] = row
    table = pd.DataFrame(rows).T
    table.loc["iteration"] = table.sum()
    table["qmp / base"] = table["qmp"] / table["base"]
    table["plain / qmp"] = table["plain"] / table["qmp"]
    return table


def measure_iterations(args: Args) -> pd.DataFrame:
    """Measure every environment and every number of tasks. Returns the table that is printed."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if args.cuda else "cpu")
    compile_flag = ["--compile"] if args.compile else []
    tables = []

    def add(name: str, envs: MultiTaskEnv | None, N: int, flags: list[str]) -> None:
        torch.compiler.reset()  # the compiler gives up after some cases otherwise
        script_args = tyro.cli(qmp_sac.Args, args=[*flags, *compile_flag])
        parts = make_parts(envs, N, script_args, device)
        ms = measure(parts, args.seconds, args.cuda)
        table = describe_iteration(ms, script_args).reset_index(names="part of an iteration")
        table.insert(0, "environment", name)
        table.insert(1, "N", N)
        table.insert(2, "B", script_args.batch_size)
        tables.append(table)

    for env_id in args.env_ids:
        envs = make_vec(env_id, args.vectorization)
        add(env_id, envs, envs.num_envs, command(env_id, "qmp_sac", "qmp", 1)[2:])
        envs.close()
    for N, batch_size in itertools.product(args.tasks, args.batch_sizes):
        add("", None, N, ["--batch-size", str(batch_size)])
    table = pd.concat(tables, ignore_index=True)
    where = torch.cuda.get_device_name() if args.cuda else f"one thread of {name_cpu()}"
    print(f"ms on {where}, PyTorch {torch.__version__}")
    print(table.to_string(index=False, float_format="%.3g"))
    return table


# WHOLE RUNS


def name_cpu() -> str:
    """The processor's name, where the system tells it."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return f"{os.cpu_count()} cores"


def run_short(words: list[str], folder: Path) -> tuple[float, float, float]:
    """The processor's seconds and the peak memory of a run, and its checkpoint's size, in bytes."""
    environ = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [sys.executable, ROOT / words[1], *words[2:], "--run-dir", folder]
    process = subprocess.Popen(words, env=environ, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{words[1]} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = usage.ru_utime + usage.ru_stime
    return seconds, usage.ru_maxrss * unit, (folder / "checkpoint.pt").stat().st_size


def plan(env_id: str, script: str, updates: int) -> dict:
    """What a run with the paper's settings costs: a row of the table."""
    module = __import__(script)
    words = command(env_id, script, "qmp", 1, "paper")
    args, _ = module.parse_args(words[2:])
    N = len(make_tasks(env_id))
    # Three runs: short, longer, and as long with one more episode in its only evaluation.
    short = 10 * args.train_frequency * N
    phases = math.ceil(updates / args.gradient_steps)
    longer = short + max(phases * args.train_frequency, 100) * N
    seconds = []
    sizes = []
    with tempfile.TemporaryDirectory() as folder:
        for steps, episodes in ((short, 1), (longer, 1), (longer, 2)):
            flags = f"--total-timesteps {steps} --learning-starts {N} --eval-episodes {episodes}"
            flags += f" --eval-frequency {10 * longer} --checkpoint-frequency {10 * longer}"
            run_dir = Path(folder, f"{steps}-{episodes}")
            spent, memory, size = run_short([*words, *flags.split()], run_dir)
            seconds.append(spent)
            sizes.append(size)
    per_step = (seconds[1] - seconds[0]) / (longer - short)
    per_evaluation = max(0, seconds[2] - seconds[1]) * args.eval_episodes
    per_million = 1e6 * (per_step + per_evaluation / args.eval_frequency)
    bytes_per_step = (sizes[1] - sizes[0]) / (longer - short)
    missing = bytes_per_step * (min(args.total_timesteps, N * args.buffer_size) - longer)
    return {
        "environment": env_id,
        "script": script,
        "hours per million steps": per_million / 3600,
        "memory (GB)": (memory + missing) / 1e9,
        "checkpoint (GB)": (size + missing) / 1e9,
        "million steps of the paper": args.total_timesteps / 1e6,
        "days": per_million * args.total_timesteps / 1e6 / 86400,
    }


def plan_all(args: Args) -> pd.DataFrame:
    """Plan every environment with every script. Returns the table that is printed."""
    rows = []
    for env_id, script in itertools.product(args.env_ids, args.scripts):
        if env_id not in SETTINGS:
            raise SystemExit(f"speed.py: error: {env_id} has no settings in benchmark/run.py")
        rows.append(plan(env_id, script, args.updates))
        print(pd.DataFrame(rows[-1:]).to_string(index=False, header=False, float_format="%.3g"))
    table = pd.DataFrame(rows)
    print(f"\none core of {name_cpu()}, PyTorch {torch.__version__}")
    print(table.to_string(index=False, float_format="%.3g"))
    return table


def main(args: Args) -> pd.DataFrame:
    """Measure. Returns the table that is printed."""
    return plan_all(args) if args.plan else measure_iterations(args)


if __name__ == "__main__":
    main(tyro.cli(Args))
