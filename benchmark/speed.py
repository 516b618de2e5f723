"""How fast are selection and update, and what does QMP cost? Everything on one core, in one process, taken in turns.

    python benchmark/speed.py     # ten minutes: results/speed.csv, speed.png, and the tables in benchmark/README.md
    python benchmark/speed.py --seconds 0.2 --output runs/speed    # a quick look

1. Selecting one action of every task, and one update of all tasks: our stacked networks beside plain loops over
   `torch.nn` modules with their own Adams (PyTorch's default ones, and fused as ours are), which choose and learn the
   same.
2. The update's arithmetic (counted by PyTorch) at the rate of a large matrix product, beside the update and beside its
   matrix products with nothing around them.
3. A whole turn of training, its parts timed, with QMP and without, in every environment, with the hyper-parameters of
   the paper's experiments (but a replay of 20,000 random transitions). What the switch costs is the difference between
   the median times of selection, divided by the median turn without it. With a period of ten it is measured with all
   tasks choosing in the same turn, as they do while their episodes are equally long, and one after the other.

Times are medians; what stands beside them are quartiles. Ratios are medians of ratios of neighbouring measurements.
"""

import copy
import importlib
import itertools
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import get_args

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from plot import RESULTS, insert, markdown, read, save, select, write
from run import SETTINGS, Script, command
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from envs import make_vec  # noqa: E402

SCRIPTS = get_args(Script)
TASKS = (1, 2, 5, 10, 25, 50)
O, A = 15, 6  # as in MultistageReacher
CPU = torch.device("cpu")
THOUSAND = 200  # turns of five tasks make a thousand steps


@dataclass
class Args:
    """Arguments."""

    seconds: float = 4.0
    """time for each comparison"""
    output: Path = RESULTS
    """folder of speed.csv and speed.png"""


def mlp(*sizes: int) -> nn.Sequential:
    """A plain perceptron."""
    layers = [module for i, o in zip(sizes, sizes[1:], strict=False) for module in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Nets:
    """A plain perceptron of each task; first layers that the tasks share run once for all of them."""

    def __init__(self, N: int, sizes: tuple[int, ...], shared: bool):
        *body, last, outputs = sizes
        self.trunk = nn.Sequential(mlp(*body, last), nn.ReLU()) if shared else nn.Identity()
        self.shared, self.heads = shared, [nn.Linear(last, outputs) if shared else mlp(*sizes) for _ in range(N)]

    def __call__(self, inputs: list[Tensor]) -> list[Tensor]:
        """Each task's net on its own input."""
        if self.shared:
            inputs = self.trunk(torch.cat(inputs)).split([len(x) for x in inputs])
        return [head(x) for head, x in zip(self.heads, inputs, strict=True)]

    def groups(self) -> list[list[nn.Parameter]]:
        """Parameters of each task, or all in one group where tasks share some."""
        groups = [[*head.parameters()] for head in self.heads]
        return [sum(groups, [*self.trunk.parameters()])] if self.shared else groups


class Loop:
    """N agents as plain modules, one after the other: the same method, as one would write it without a stack."""

    def __init__(self, script: str, N: int, args, fused: bool = True):
        self.script, self.args, self.squash = script, args, importlib.import_module(script).squash
        shared, hidden = script == "qmp_mtsac", args.hidden_sizes
        self.actor = Nets(N, (O, *hidden, 2 * A), shared)
        self.qf1, self.qf2 = (Nets(N, (O + A, *hidden, 1), shared) for _ in range(2))
        self.qf1_target, self.qf2_target = copy.deepcopy(self.qf1), copy.deepcopy(self.qf2)
        self.log_alphas = [torch.full((), math.log(args.alpha), requires_grad=True) for _ in range(N)]
        self.actor_optimizers = [Adam(group, lr=args.policy_lr, fused=fused) for group in self.actor.groups()]
        groups = [a + b for a, b in zip(self.qf1.groups(), self.qf2.groups(), strict=True)]
        self.q_optimizers = [Adam(group, lr=args.q_lr, fused=fused) for group in groups]
        self.a_optimizers = [Adam([log_alpha], lr=args.q_lr, fused=fused) for log_alpha in self.log_alphas]

    def act(self, obs: list[Tensor], noise: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Every task's sampled actions and their log-probabilities."""
        outputs = [output.chunk(2, dim=-1) for output in self.actor(obs)]
        return [
            self.squash(mean, log_std.clamp(-20, 2), sample)
            for (mean, log_std), sample in zip(outputs, noise, strict=True)
        ]

    @staticmethod
    def rate(qf1: Nets, qf2: Nets, obs: list[Tensor], actions: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Both Q-values of every task's transitions."""
        x = [torch.cat(pair, -1) for pair in zip(obs, actions, strict=True)]
        return tuple([value.squeeze(-1) for value in qf(x)] for qf in (qf1, qf2))

    def descend(self, optimizers: list[Adam], losses: list[Tensor]) -> None:
        """One step of every optimiser."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(losses).backward(inputs=[p for optimizer in optimizers for p in optimizer.param_groups[0]["params"]])
        for optimizer in optimizers:
            optimizer.step()

    def update(self, data, borrowed=None) -> None:
        """One update of every agent, from a Batch [N, B] (and one that was borrowed)."""
        if borrowed:
            data = type(data)(*(torch.cat(fields, 1) for fields in zip(data, borrowed, strict=True)))
        noise = torch.randn(2, *data.actions.shape)  # [2, N, B, A]
        fields = [[*field] for field in (*data, *noise)]
        if borrowed:
            fields = self.keep(fields)
        obs, actions, rewards, next_obs, terminations, next_noise, noise = fields
        targets = []
        with torch.no_grad():
            proposals = self.act(next_obs, next_noise)
            values = self.rate(self.qf1_target, self.qf2_target, next_obs, [action for action, _ in proposals])
            for i, (_, log_prob) in enumerate(proposals):
                value = torch.min(values[0][i], values[1][i]) - self.log_alphas[i].exp() * log_prob
                targets.append(rewards[i] + self.args.gamma * (1 - terminations[i]) * value)
        values = self.rate(self.qf1, self.qf2, obs, actions)
        losses = [F.mse_loss(value, target) for qf in values for value, target in zip(qf, targets, strict=True)]
        self.descend(self.q_optimizers, losses)

        proposals = self.act(obs, noise)
        values = self.rate(self.qf1, self.qf2, obs, [action for action, _ in proposals])
        losses = [
            (self.log_alphas[i].detach().exp() * log_prob - torch.min(values[0][i], values[1][i])).mean()
            for i, (_, log_prob) in enumerate(proposals)
        ]
        if self.script == "qmp_dnc":
            losses += self.divergences(torch.cat(obs))
        self.descend(self.actor_optimizers, losses)
        losses = [
            (-log_alpha * (log_prob.detach() - A)).mean()
            for log_alpha, (_, log_prob) in zip(self.log_alphas, proposals, strict=True)
        ]
        self.descend(self.a_optimizers, losses)
        with torch.no_grad():
            for qf, target in ((self.qf1, self.qf1_target), (self.qf2, self.qf2_target)):
                for p, q in zip(sum(qf.groups(), []), sum(target.groups(), []), strict=True):
                    q.lerp_(p, self.args.tau)

    @torch.no_grad()
    def keep(self, fields: list[list[Tensor]]) -> list[list[Tensor]]:
        """Of every task's batch, the second half of which is borrowed, what it learns from (UDS)."""
        values = [torch.min(*pair) for pair in zip(*self.rate(self.qf1, self.qf2, *fields[:2]), strict=True)]
        masks = []
        for value in values:
            own, others = value.chunk(2)
            kept = (others > own.quantile(self.args.sharing_quantile)) & (len(values) > 1)
            masks.append(torch.cat([torch.ones_like(kept), kept]))
        return [[rows[mask] for rows, mask in zip(field, masks, strict=True)] for field in fields]

    def divergences(self, states: Tensor) -> list[Tensor]:
        """KL of every other policy from each, in all states (DnC)."""
        policies, still = [], []
        for output in self.actor([states] * len(self.log_alphas)):
            mean, log_std = output.chunk(2, dim=-1)
            std = log_std.clamp(-20, 2).exp()
            policies.append(Normal(mean, std))
            still.append(Normal(mean.detach(), std.detach()))
        pairs = itertools.permutations(range(len(policies)), 2)
        return [float(self.args.kl_coef) * kl_divergence(still[j], policies[i]).sum(-1).mean() for i, j in pairs]

    @torch.no_grad()
    def candidates(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Every policy's actions [P, S, A] in states obs [S, O], by noise [P, S, A], and their log_prob [P, S]."""
        proposals = []
        features = self.actor.trunk(obs)
        for head, sample in zip(self.actor.heads, noise, strict=True):
            mean, log_std = head(features).chunk(2, dim=-1)
            proposals.append(self.squash(mean, log_std.clamp(-20, 2), sample))
        actions, log_prob = zip(*proposals, strict=True)
        return torch.stack(actions), torch.stack(log_prob)

    @torch.no_grad()
    def choose(self, i: int, obs: Tensor, actions: Tensor, log_prob: Tensor) -> Tensor:
        """The policy that task i chooses in its state obs [O] among actions [P, A] with log_prob [P]."""
        x = torch.cat([obs.expand(len(actions), O), actions], -1)
        values = [qf.heads[i](qf.trunk(x)).squeeze(-1) for qf in (self.qf1, self.qf2)]
        return (torch.min(*values) - self.log_alphas[i].exp() * log_prob).argmax()

    def select(self, obs: Tensor, noise: Tensor) -> list[Tensor]:
        """Every task's choice in obs [N, O]: each policy acts once, in all states."""
        actions, log_prob = self.candidates(obs, noise)
        return [self.choose(i, obs[i], actions[:, i], log_prob[:, i]) for i in range(len(obs))]

    def select_singly(self, obs: Tensor, noise: Tensor) -> list[Tensor]:
        """The same, a task at a time, as the authors' code collects data."""
        chosen = []
        for i in range(len(obs)):
            actions, log_prob = self.candidates(obs[i : i + 1], noise[:, i : i + 1])
            chosen.append(self.choose(i, obs[i], actions[:, 0], log_prob[:, 0]))
        return chosen


def alternate(seconds: float, **functions: Callable) -> dict[str, np.ndarray]:
    """Times [R] in ms of several functions, one after the other again and again for so long (at least three times)."""
    for function in functions.values():
        function()
    times, start = {name: [] for name in functions}, time.perf_counter()
    while time.perf_counter() - start < seconds or min(map(len, times.values())) < 3:
        for name, function in functions.items():
            before = time.perf_counter()
            function()
            times[name].append(1e3 * (time.perf_counter() - before))
    return {name: np.array(values) for name, values in times.items()}


def row(part: str, times: np.ndarray, ratios: np.ndarray | None = None, **where) -> dict:
    """A line of the CSV file: the median and quartiles of times in ms, and the median of ratios."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    line = {"part": part, "script": "", "env": "", "N": "", "B": "", "variant": ""} | where
    line |= {"ms": f"{median:.4g}", "quartile_1": f"{low:.4g}", "quartile_3": f"{high:.4g}"}
    return line | {"ratio": "" if ratios is None else f"{np.median(ratios):.3g}"}


def example(script: str, N: int, B: int, **flags) -> tuple:
    """A script's module, arguments, agent and a filled replay buffer."""
    module = importlib.import_module(script)
    args = replace(module.Args(), batch_size=B, switch_period=1, **flags)
    torch.manual_seed(1)
    agent = module.make_agent(N, O, A, args, CPU)
    return module, args, agent, filled_replay(module, N, 2000, O, A)


def filled_replay(module, N: int, capacity: int, O: int, A: int):
    """A replay buffer full of random transitions."""
    rb = module.ReplayBuffer(N, capacity, O, A, CPU)
    for field in rb.data:
        field.normal_()
    rb.data.actions.tanh_()
    rb.data.terminations.zero_()
    rb.size = capacity
    return rb


def updaters(script: str, N: int, B: int, wrap: Callable = lambda f: f) -> dict[str, Callable]:
    """Functions that make one update from replay: stacked, in a loop over tasks, and the same with default Adams."""
    module, args, agent, rb = example(script, N, B)
    update = wrap(module.update)
    loop, plain, min_rewards = Loop(script, N, args), Loop(script, N, args, fused=False), torch.zeros(N)

    def batches() -> tuple:
        return (rb.sample(B), rb.sample_others(B, min_rewards)) if script == "qmp_uds" else (rb.sample(B),)

    return {
        "stacked": lambda: update(agent, *batches(), args),
        "loop": lambda: loop.update(*batches()),
        "plain": lambda: plain.update(*batches()),
    }


def selectors(script: str, N: int) -> dict[str, Callable]:
    """Functions that choose an action for every task: stacked, in a loop over policies, in a loop over tasks too."""
    module, args, agent, _ = example(script, N, 1)
    mixture = module.Mixture(agent, args, torch.Generator().manual_seed(1))
    obs, lengths = np.random.default_rng(1).standard_normal((N, O)).astype(np.float32), np.zeros(N, dtype=np.int64)
    loop, states = Loop(script, N, args), torch.from_numpy(obs)
    return {
        "stacked": lambda: mixture(obs, lengths),
        "loop": lambda: loop.select(states, torch.randn(N, N, A)),
        "singly": lambda: loop.select_singly(states, torch.randn(N, N, A)),
    }


def against_loops(seconds: float) -> list[dict]:
    """Stacked against looped, for every script and number of tasks; ratios are a loop's time to the stacked one's."""
    rows = []
    for script, N in itertools.product(SCRIPTS, TASKS):
        for part, functions in (("selection", selectors(script, N)), ("update", updaters(script, N, 32))):
            times = alternate(seconds, **functions)
            for name, values in times.items():
                where = {"script": script, "N": N, "B": 32 if part == "update" else "", "variant": name}
                rows.append(row(part, values, values / times["stacked"], **where))
                print(f"{part:10}{script:10}N {N:3}  {name:8}{rows[-1]['ms']:>8} ms, {rows[-1]['ratio']:>5} x stacked")
    return rows


def choose(module, args, agent, seed: int, low: bool) -> Tensor:
    """The switch's choice [N] in random states, its matrix products in bfloat16 if `low`."""
    N, generator = len(agent.log_alpha), torch.Generator().manual_seed(seed)
    noise, obs = torch.randn(N, N, 1, A, generator=generator), torch.randn(N, O, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        return module.q_switch(agent.actor, agent.qf, 0.01 * torch.ones(N), obs, noise, torch.zeros(N, N), args)[0]


def in_bfloat16(seconds: float) -> list[dict]:
    """Selection by untrained networks in bfloat16: its time, and how often it chooses another policy."""
    rows = []
    for N in (10, 50):
        switch = partial(choose, *example("qmp_sac", N, 1)[:3])
        times = alternate(seconds, float32=partial(switch, 0, False), bfloat16=partial(switch, 0, True))
        others = np.mean([(switch(seed, False) != switch(seed, True)).float().mean().item() for seed in range(50)])
        rows.append(row("q_switch", times["float32"], N=N, variant="float32"))
        rows.append(row("q_switch", times["bfloat16"], times["bfloat16"] / times["float32"], N=N, variant="bfloat16"))
        rows.append(row("other choice", np.zeros(1), N=N, variant="bfloat16"))
        rows[-1] |= {"ms": "", "quartile_1": "", "quartile_3": "", "ratio": f"{others:.3f}"}
        print(f"bfloat16, N {N}: {rows[-2]['ratio']} x float32, other choice in {others:.1%} of the states")
    return rows


def products(N: int, B: int, hidden: int = 256) -> Callable:
    """The matrix products of one update of qmp_sac.py, into memory that is there already, and nothing else."""

    def net(stack: int, *sizes: int) -> list[tuple[Tensor, ...]]:
        shapes = zip(sizes, sizes[1:], strict=False)
        return [
            tuple(torch.randn(stack, *shape) for shape in ((B, i), (i, o), (B, o), (B, i), (i, o), (B, o)))
            for i, o in shapes
        ]

    def forward(layers) -> None:
        for x, weight, _, _, _, y in layers:
            torch.bmm(x, weight, out=y)

    def backward(layers, to_weights: bool, to_inputs: bool) -> None:
        for k, (x, weight, gradient, dx, dweight, _) in reversed(list(enumerate(layers))):
            if to_weights:
                torch.bmm(x.mT, gradient, out=dweight)
            if k or to_inputs:
                torch.bmm(gradient, weight.mT, out=dx)

    actor = net(N, O, hidden, hidden, 2 * A)
    qf, target = net(2 * N, O + A, hidden, hidden, 1), net(2 * N, O + A, hidden, hidden, 1)

    def run() -> None:
        for layers in (actor, target, qf):
            forward(layers)
        backward(qf, to_weights=True, to_inputs=False)
        for layers in (actor, qf):
            forward(layers)
        backward(qf, to_weights=False, to_inputs=True)
        backward(actor, to_weights=True, to_inputs=False)

    return run


def flops(function: Callable) -> int:
    """Floating-point operations of the matrix products in a call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def against_arithmetic(seconds: float) -> list[dict]:
    """The update of qmp_sac.py, its arithmetic at the rate of a large matrix product, and its own products alone.

    Ratios are of that ideal time to each one's.
    """
    rows = []
    for N, B in ((5, 32), (10, 32), (10, 256)):
        torch.compiler.reset()
        functions = {
            "update": updaters("qmp_sac", N, B)["stacked"],
            "compiled": updaters("qmp_sac", N, B, torch.compile)["stacked"],
            "products": products(N, B),
        }
        work = flops(functions["update"])
        if flops(functions["products"]) != work:
            raise RuntimeError("the list of matrix products is not that of the update")
        times = alternate(3 * seconds, **functions, gemm=gemm)
        ideal = times["gemm"] * work / flops(gemm)
        rows.append(row("arithmetic", ideal, N=N, B=B, variant="ideal"))
        rate = flops(gemm) / np.median(times["gemm"]) / 1e6
        for name in functions:
            rows.append(row("arithmetic", times[name], ideal / times[name], N=N, B=B, variant=name))
            print(f"N {N}, B {B}: {name} at {rows[-1]['ratio']} of {rate:.0f} GFLOP/s")
    return rows


MATRIX = torch.randn(1024, 1024)


def gemm() -> Tensor:
    """A large matrix product."""
    return MATRIX @ MATRIX


class Turn:
    """Whole turns of training in an environment, with every part timed."""

    PARTS = ("environment", "selection", "replay", "update")
    COLUMNS = {"period 1": "switch in every step", "period 10": "in every tenth", "apart": "in every tenth, apart"}

    def __init__(self, env_id: str):
        module = self.module = importlib.import_module("qmp_sac")
        args = module.parse_args(command(env_id, "qmp_sac", "qmp", 1, "paper")[2:], module.Args())
        self.envs = make_vec(env_id, 1)
        N, O, A = self.envs.num_envs, *self.envs.single_observation_space.shape, *self.envs.single_action_space.shape
        torch.manual_seed(1)
        self.agent = module.make_agent(N, O, A, args, CPU)
        self.rb, self.args = filled_replay(module, N, 20_000, O, A), args
        periods = {"period 1": 1, "period 10": 10, "apart": 10}
        variants = {name: replace(args, switch_period=period) for name, period in periods.items()}
        variants["without"] = replace(args, qmp=False)
        generator = torch.Generator().manual_seed(1)
        self.mixtures = {name: module.Mixture(self.agent, variant, generator) for name, variant in variants.items()}
        self.obs, _ = self.envs.reset(seed=1)
        self.turn = 0

    def step(self, actions: Tensor) -> float:
        """One step of all tasks, stored. Returns when the environments were done."""
        actions = actions.numpy()
        next_obs, rewards, terminations, *_ = self.envs.step(actions)
        done = time.perf_counter()
        self.rb.add(self.obs, actions, rewards, next_obs, terminations)
        self.obs = next_obs
        return done

    def run(self, name: str, turns: int) -> np.ndarray:
        """Time in ms that each part takes in a turn [parts], mean over some turns."""
        spent, N = np.zeros(len(self.PARTS)), len(self.obs)
        ahead = np.arange(N) if name == "apart" else np.zeros(N, dtype=np.int64)
        for _ in range(turns):
            start = time.perf_counter()
            actions = self.mixtures[name](self.obs, self.turn + ahead)
            selected = time.perf_counter()
            stepped = self.step(actions)
            stored = time.perf_counter()
            spent += stepped - selected, selected - start, stored - stepped, 0
            self.turn += 1
            if self.turn % self.args.train_frequency == 0:
                for _ in range(self.args.gradient_steps):
                    start = time.perf_counter()
                    data = self.rb.sample(self.args.batch_size)
                    sampled = time.perf_counter()
                    self.module.update(self.agent, data, self.args)
                    spent[2:] += sampled - start, time.perf_counter() - sampled
        return 1e3 * spent / turns


def whole_turns(seconds: float) -> list[dict]:
    """What a turn takes in every environment, part by part, and what the mixture adds to it."""
    rows = []
    for env_id in SETTINGS:
        turn, start = Turn(env_id), time.perf_counter()
        spent = {name: [] for name in turn.mixtures}
        while time.perf_counter() - start < 3 * seconds or len(spent["without"]) < 5:
            for name, values in spent.items():
                values.append(turn.run(name, math.lcm(turn.args.train_frequency, 10)))
        turn.envs.close()
        without = np.array(spent.pop("without"))  # [R, parts]
        where = {"env": env_id, "N": len(turn.obs), "B": turn.args.batch_size}
        for name, values in spent.items():
            parts = np.array(values)
            rows += [row(part, parts[:, k], **where, variant=name) for k, part in enumerate(Turn.PARTS)]
            # Its other parts are the same work with QMP and without; their noise would hide what selection adds.
            added = np.median(parts[:, 1]) - np.median(without[:, 1])
            cost = 1 + added / np.median(without.sum(1))
            rows.append(row("turn", parts.sum(1), **where, variant=name) | {"ratio": f"{cost:.3f}"})
            print(f"{env_id:22} {name:9}: turn {rows[-1]['ms']:>6} ms, with / without QMP {cost:.3f}")
    return rows


def thousand_steps(seconds: float) -> list[dict]:
    """1,000 steps of MultistageReacher with QMP and 200 updates of its five tasks, beside their arithmetic alone."""
    turn = Turn("MultistageReacher-v0")
    work = THOUSAND * flops(lambda: turn.module.update(turn.agent, turn.rb.sample(32), turn.args))
    times = alternate(2 * seconds, run=lambda: turn.run("period 1", THOUSAND), gemm=lambda: [gemm() for _ in range(20)])
    ideal = times["gemm"] * work / (20 * flops(gemm))
    rows = [row("1,000 steps", times["run"], times["run"] / ideal, env="MultistageReacher-v0", N=5, B=32)]
    print(f"1,000 steps of MultistageReacher: {rows[0]['ms']} ms, {rows[0]['ratio']} x their arithmetic")
    return rows


def machine() -> str:
    """Processor and versions, for the table's caption."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}"


def draw(rows: list[dict], path: Path) -> None:
    """Stacked against looped over the number of tasks, and the parts of a turn."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.2), layout="constrained")
    titles = {
        "selection": "one selection (dashed, dotted: loops)",
        "update": "one update, B = 32 (dashed: loop, fused Adams)",
    }
    for panel, part in zip(axes, titles, strict=False):
        for script in SCRIPTS:
            for variant, style in (("singly", ":"), ("loop", "--"), ("stacked", "-")):
                chosen = select(rows, part=part, script=script, variant=variant)
                color = f"C{SCRIPTS.index(script)}"
                label = script if variant == "stacked" else None
                N, ms = ([float(line[name]) for line in chosen] for name in ("N", "ms"))
                panel.plot(N, ms, style, marker="o", markersize=3, color=color, label=label)
        panel.set(title=titles[part], xlabel="tasks", ylabel="ms")
        panel.set(xscale="log", yscale="log", xticks=TASKS, xticklabels=TASKS)
        panel.legend(fontsize="small")
    turns = select(rows, part="turn", variant="period 1")
    left = np.zeros(len(turns))
    for part in Turn.PARTS:
        shares = [
            float(select(rows, part=part, env=line["env"], variant="period 1")[0]["ms"]) / float(line["ms"])
            for line in turns
        ]
        axes[2].barh([line["env"] for line in turns], shares, left=left, label=part)
        left += shares
    axes[2].set(title="parts of a turn, choosing in every step", xlabel="share", xlim=(0, 1))
    axes[2].invert_yaxis()
    axes[2].legend(fontsize="small", loc="lower right")
    save(figure, path)


def tables(rows: list[dict]) -> str:
    """Markdown of the measurements."""
    text = f"One core of: {rows[0]['machine']}. Medians.\n\n"
    text += "Time of a loop / time stacked (time stacked), by number of tasks:\n\n"
    lines = []
    loops = {
        "selection": {"singly": "a task at a time", "loop": "in a loop over policies"},
        "update": {"plain": "loop with default Adams", "loop": "loop with fused Adams"},
    }
    for part, script in itertools.product(loops, SCRIPTS):
        stacked = select(rows, part=part, script=script, variant="stacked")
        for variant, name in loops[part].items():
            looped = select(rows, part=part, script=script, variant=variant)
            cells = [f"{line['ratio']} ({ours['ms']} ms)" for line, ours in zip(looped, stacked, strict=True)]
            lines.append([f"{part}, `{script}.py`, {name}", *cells])
    text += markdown(["", *map(str, TASKS)], lines)
    text += "\nAn update of `qmp_sac.py`, and in brackets its part of the rate of a large matrix product:\n\n"
    lines = []
    for ideal in select(rows, part="arithmetic", variant="ideal"):
        where = {"part": "arithmetic", "N": ideal["N"], "B": ideal["B"]}
        found = [select(rows, **where, variant=name)[0] for name in ("products", "update", "compiled")]
        cells = [f"{line['ms']} ms ({line['ratio']})" for line in found]
        lines.append([ideal["N"], ideal["B"], f"{ideal['ms']} ms", *cells])
    head = ["N", "B", "its arithmetic at that rate", "its products alone", "update", "with `--compile`"]
    text += markdown(head, lines)
    text += (
        "\nA turn of training with QMP, choosing in every step: a step of every task and its share of the updates, "
        "without logging and evaluation. Last, what the switch adds to the turn without it:\n\n"
    )
    lines = []
    for line in select(rows, part="turn", variant="period 1"):
        parts = [select(rows, part=part, env=line["env"], variant="period 1")[0]["ms"] for part in Turn.PARTS]
        turns = [select(rows, part="turn", env=line["env"], variant=name)[0] for name in Turn.COLUMNS]
        costs = [f"{float(turn['ratio']) - 1:.1%}" for turn in turns]
        lines.append([line["env"], f"{line['ms']} ms", *(f"{ms} ms" for ms in parts), *costs])
    text += markdown(["", "turn", *Turn.PARTS, *Turn.COLUMNS.values()], lines)
    (line,) = select(rows, part="1,000 steps")
    taken = f"{float(line['ms']) / 1e3:.2f} s"
    text += (
        f"\n1,000 steps of MultistageReacher with QMP and 200 updates of its five tasks take {taken}, "
        f"{line['ratio']} times as long as their arithmetic alone would at the rate of a large matrix product.\n"
    )
    for line in select(rows, part="q_switch", variant="bfloat16"):
        (other,) = select(rows, part="other choice", N=line["N"])
        text += (
            f"\nThe switch with matrix products in bfloat16, N = {line['N']}, untrained networks: {line['ratio']} times"
            f" the time, another choice in {float(other['ratio']):.1%} of the states.\n"
        )
    return text


def main(args: Args) -> None:
    """Measure everything, write the CSV file, the plot and, where the project keeps its results, the tables."""
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    where = {"machine": machine()}
    rows = [
        *against_arithmetic(args.seconds),
        *thousand_steps(args.seconds),
        *whole_turns(args.seconds),
        *in_bfloat16(args.seconds),
        *against_loops(args.seconds),
    ]
    write(args.output / "speed.csv", [line | where for line in rows])
    rows = read(args.output / "speed.csv")
    draw(rows, args.output / "speed.png")
    if args.output == RESULTS:
        insert(ROOT / "benchmark" / "README.md", tables(rows), "speed")


if __name__ == "__main__":
    main(tyro.cli(Args))
