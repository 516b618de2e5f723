"""How fast are selection and update, and what does QMP cost? Everything on one core, in one process, taken in turns.

    python benchmark/speed.py                 # about ten minutes: benchmark/results/speed.csv, speed.png, the tables
    python benchmark/speed.py --seconds 0.2   # a quick look

1. Selecting one action of every task, and one update of all tasks: our stacked networks beside a plain loop over
   `torch.nn` modules with their own (fused) Adams, which learns the same.
2. The update's arithmetic (counted by PyTorch) beside the rate of a large matrix product, and beside the same matrix
   products as in the update with nothing else around them.
3. A whole turn of training, of which every part is timed, with QMP and without, in every environment, with the
   hyper-parameters of the paper's experiments.

Times are medians; what stands beside them are quartiles. Ratios are medians of ratios of neighbouring measurements.
"""

import copy
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
import tyro
from plot import RESULTS, insert, markdown, read, save, select, write
from run import SETTINGS, command
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from envs import make_vec  # noqa: E402

SCRIPTS = ("qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds")
TASKS = (1, 2, 5, 10, 25, 50)
O, A = 15, 6  # as in MultistageReacher
CPU = torch.device("cpu")


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


class Loop:
    """N agents as plain modules, one after the other: the same method, as one would write it without a stack."""

    def __init__(self, script: str, N: int, args):
        self.script, self.N, self.args, self.module = script, N, args, importlib.import_module(script)
        self.actors, self.qf1, self.qf2 = self.nets(O, 2 * A), self.nets(O + A, 1), self.nets(O + A, 1)
        self.qf1_target, self.qf2_target = copy.deepcopy(self.qf1), copy.deepcopy(self.qf2)
        self.log_alphas = [torch.zeros(1, requires_grad=True) for _ in range(N)]
        self.actor_optimizers = self.optimizers(*([net] for net in self.actors))
        self.q_optimizers = self.optimizers(*zip(self.qf1, self.qf2, strict=True))
        self.a_optimizers = [Adam([log_alpha], lr=args.q_lr, fused=True) for log_alpha in self.log_alphas]

    def nets(self, inputs: int, outputs: int) -> list[nn.Sequential]:
        """A net of each task; those of qmp_mtsac.py have their first layers in common."""
        hidden = self.args.hidden_sizes
        if self.script == "qmp_mtsac":
            trunk = nn.Sequential(mlp(inputs, *hidden), nn.ReLU())
            return [nn.Sequential(trunk, nn.Linear(hidden[-1], outputs)) for _ in range(self.N)]
        return [mlp(inputs, *hidden, outputs) for _ in range(self.N)]

    def optimizers(self, *groups) -> list[Adam]:
        """An Adam for each task's nets, or one for all where they share parameters."""
        parameters = [[p for net in nets for p in net.parameters()] for nets in groups]
        if self.script == "qmp_mtsac":
            parameters = [list(dict.fromkeys(p for group in parameters for p in group))]
        return [Adam(group, lr=self.args.q_lr, fused=True) for group in parameters]

    def act(self, i: int, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled actions of policy i and their log-probabilities."""
        mean, log_std = self.actors[i](obs).chunk(2, dim=-1)
        return self.module.squash(mean, log_std.clamp(-20, 2), torch.randn_like(mean))

    def descend(self, optimizers: list[Adam], losses: list[Tensor]) -> None:
        """One step of every optimiser."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(losses).backward(inputs=[p for optimizer in optimizers for p in optimizer.param_groups[0]["params"]])
        for optimizer in optimizers:
            optimizer.step()

    def update(self, data, borrowed=None) -> None:
        """One update of every agent, from a Batch [N, B] (and one that was borrowed)."""
        tasks, args = range(self.N), self.args
        batches = [tuple(field[i] for field in data) for i in tasks]
        if borrowed:
            batches = [self.join(i, batches[i], tuple(field[i] for field in borrowed)) for i in tasks]
        losses = []
        for i, (obs, actions, rewards, next_obs, terminations) in enumerate(batches):
            with torch.no_grad():
                next_actions, next_log_prob = self.act(i, next_obs)
                x = torch.cat([next_obs, next_actions], -1)
                value = torch.min(self.qf1_target[i](x), self.qf2_target[i](x)).squeeze(-1)
                value = value - self.log_alphas[i].exp() * next_log_prob
                target = rewards + args.gamma * (1 - terminations) * value
            x = torch.cat([obs, actions], -1)
            losses += [F.mse_loss(net[i](x).squeeze(-1), target) for net in (self.qf1, self.qf2)]
        self.descend(self.q_optimizers, losses)

        losses, log_probs = [], []
        for i, (obs, *_) in enumerate(batches):
            actions, log_prob = self.act(i, obs)
            x = torch.cat([obs, actions], -1)
            min_qf_pi = torch.min(self.qf1[i](x), self.qf2[i](x)).squeeze(-1)
            losses.append((self.log_alphas[i].detach().exp() * log_prob - min_qf_pi).mean())
            log_probs.append(log_prob.detach())
        if self.script == "qmp_dnc":
            losses += self.divergences(torch.cat([batch[0] for batch in batches]))
        self.descend(self.actor_optimizers, losses)

        alpha_losses = [(-a * (log_prob - A)).mean() for a, log_prob in zip(self.log_alphas, log_probs, strict=True)]
        self.descend(self.a_optimizers, alpha_losses)
        with torch.no_grad():
            for nets, targets in ((self.qf1, self.qf1_target), (self.qf2, self.qf2_target)):
                done = set()  # shared layers move once
                for net, moved in zip(nets, targets, strict=True):
                    for p, q in zip(net.parameters(), moved.parameters(), strict=True):
                        if q not in done:
                            q.lerp_(p, args.tau)
                            done.add(q)

    def join(self, i: int, own: tuple, borrowed: tuple) -> tuple:
        """A task's batch and what it keeps of the borrowed one (UDS)."""
        with torch.no_grad():
            values = []
            for obs, actions, *_ in (own, borrowed):
                x = torch.cat([obs, actions], -1)
                values.append(torch.min(self.qf1[i](x), self.qf2[i](x)).squeeze(-1))
            kept = values[1] > values[0].quantile(self.args.sharing_quantile)
        return tuple(torch.cat([mine, other[kept]]) for mine, other in zip(own, borrowed, strict=True))

    def divergences(self, states: Tensor) -> list[Tensor]:
        """KL of every other policy from each, in all states (DnC)."""
        policies = []
        for actor in self.actors:
            mean, log_std = actor(states).chunk(2, dim=-1)
            policies.append(torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp()))
        still = [torch.distributions.Normal(p.mean.detach(), p.stddev.detach()) for p in policies]
        return [
            float(self.args.kl_coef) * torch.distributions.kl_divergence(still[j], policies[i]).sum(-1).mean()
            for i in range(self.N)
            for j in range(self.N)
            if j != i
        ]

    @torch.no_grad()
    def select(self, obs: Tensor) -> list[Tensor]:
        """The mixture's action of every task in obs [N, O]: each policy acts, then the task's critics rate all."""
        chosen = []
        for i in range(self.N):
            candidates = [self.act(j, obs[i : i + 1]) for j in range(self.N)]
            actions = torch.cat([action for action, _ in candidates])  # [P, A]
            log_prob = torch.cat([log_prob for _, log_prob in candidates])  # [P]
            x = torch.cat([obs[i].expand(self.N, O), actions], -1)
            scores = torch.min(self.qf1[i](x), self.qf2[i](x)).squeeze(-1) - self.log_alphas[i].exp() * log_prob
            chosen.append(actions[scores.argmax()])
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


def row(part: str, times: np.ndarray, reference: np.ndarray | None = None, **where) -> dict:
    """A line of the CSV file: the median and quartiles of times, and the median ratio of a reference to them."""
    low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
    line = {"part": part, "script": "", "env": "", "N": "", "B": "", "variant": ""} | where
    line |= {"ms": f"{median:.4g}", "quartile_1": f"{low:.4g}", "quartile_3": f"{high:.4g}"}
    return line | {"ratio": "" if reference is None else f"{np.median(reference / times):.3g}"}


def example(script: str, N: int, B: int, **flags) -> tuple:
    """A script's module, arguments, agent and a filled replay buffer."""
    module = importlib.import_module(script)
    args = replace(module.Args(), batch_size=B, switch_period=1, **flags)
    torch.manual_seed(1)
    agent = module.make_agent(N, O, A, args, CPU)
    rb = module.ReplayBuffer(N, 2000, O, A, CPU)
    for field in rb.data:
        field.normal_()
    rb.data.actions.tanh_()
    rb.data.terminations.zero_()
    rb.size = rb.capacity
    return module, args, agent, rb


def updater(script: str, N: int, B: int, wrap: Callable = lambda f: f) -> tuple[Callable, Callable]:
    """A function that makes one stacked update from replay, and one that does the same by loops."""
    module, args, agent, rb = example(script, N, B)
    update = wrap(module.update)
    loop, min_rewards = Loop(script, N, args), torch.zeros(N)

    def batches() -> tuple:
        return (rb.sample(B), rb.sample_others(B, min_rewards)) if script == "qmp_uds" else (rb.sample(B),)

    return lambda: update(agent, *batches(), args), lambda: loop.update(*batches())


def selector(script: str, N: int) -> tuple[Callable, Callable]:
    """A function that chooses the action of every task, and one that does the same by loops."""
    module, args, agent, _ = example(script, N, 1)
    mixture = module.Mixture(agent, args, torch.Generator().manual_seed(1))
    obs, lengths = np.random.default_rng(1).standard_normal((N, O)).astype(np.float32), np.zeros(N, dtype=np.int64)
    loop, tensor = Loop(script, N, args), torch.from_numpy(obs)
    return lambda: mixture(obs, lengths), lambda: loop.select(tensor)


def against_loops(seconds: float) -> list[dict]:
    """Stacked against looped, for every script and number of tasks."""
    rows = []
    for script in SCRIPTS:
        for N in TASKS:
            for part, (stacked, looped) in (("selection", selector(script, N)), ("update", updater(script, N, 32))):
                times = alternate(seconds, stacked=stacked, looped=looped)
                where = {"script": script, "N": N, "B": 32 if part == "update" else ""}
                rows.append(row(part, times["stacked"], times["looped"], variant="stacked", **where))
                rows.append(row(part, times["looped"], variant="loop", **where))
                print(f"{part:10}{script:10} N {N:3}: {rows[-2]['ms']:>8} ms, loop / stacked {rows[-2]['ratio']}")
    return rows


def choose(module, args, agent, seed: int, low: bool) -> Tensor:
    """The switch's choice [N] in random states, its matrix products in bfloat16 if `low`."""
    N, generator = len(agent.log_alpha), torch.Generator().manual_seed(seed)
    noise, obs = torch.randn(N, N, 1, A, generator=generator), torch.randn(N, O, generator=generator)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        return module.q_switch(agent.actor, agent.qf, torch.ones(N), obs, noise, torch.zeros(N, N), args)[0]


def in_bfloat16(seconds: float) -> list[dict]:
    """Selection with matrix products in bfloat16: its time, and in which share of states it chooses another policy."""
    rows = []
    for N in (10, 50):
        switch = partial(choose, *example("qmp_sac", N, 1)[:3])
        times = alternate(seconds, float32=partial(switch, 0, False), bfloat16=partial(switch, 0, True))
        others = np.mean([(switch(seed, False) != switch(seed, True)).float().mean().item() for seed in range(50)])
        rows.append(row("q_switch", times["float32"], N=N, variant="float32"))
        rows.append(row("q_switch", times["bfloat16"], times["float32"], N=N, variant="bfloat16"))
        rows.append(
            row("other choice", np.array([others]), N=N, variant="bfloat16") | {"ms": "", "ratio": f"{others:.3f}"}
        )
        print(f"bfloat16, N {N}: float32 / bfloat16 {rows[-2]['ratio']}, other choice in {others:.1%} of the states")
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
    """The update of qmp_sac.py beside the rate of a large matrix product and beside its own products alone."""
    rows, size = [], 1024
    matrix = torch.randn(size, size)
    for N, B in ((5, 32), (10, 32), (10, 256)):
        update, alone = updater("qmp_sac", N, B)[0], products(N, B)
        if flops(update) != flops(alone):
            raise RuntimeError("the list of matrix products is not that of the update")
        torch.compiler.reset()
        compiled, *_ = updater("qmp_sac", N, B, torch.compile)
        times = alternate(3 * seconds, update=update, alone=alone, compiled=compiled, gemm=lambda: matrix @ matrix)
        bound = times["gemm"] * flops(update) / (2 * size**3)  # ms that the arithmetic takes at the rate of the product
        for name in ("compiled", "update", "alone"):
            rows.append(row("arithmetic", times[name], bound, N=N, B=B, variant=name))
        rows.append(row("arithmetic", bound, N=N, B=B, variant="at the GEMM rate"))
        rate = 2 * size**3 / np.median(times["gemm"]) / 1e6
        print(
            f"update N {N}, B {B}: {rows[-3]['ratio']} of the GEMM rate of {rate:.0f} GFLOP/s, "
            f"its products alone {rows[-2]['ratio']}"
        )
    return rows


class Turn:
    """Whole turns of training in an environment, with every part timed."""

    PARTS = ("environment", "selection", "replay", "update")

    def __init__(self, env_id: str):
        module = self.module = importlib.import_module("qmp_sac")
        args = module.parse_args(command(env_id, "qmp_sac", "qmp", 1, "paper")[2:], module.Args())
        self.envs = make_vec(env_id, 1)
        N, O, A = self.envs.num_envs, *self.envs.single_observation_space.shape, *self.envs.single_action_space.shape
        torch.manual_seed(1)
        self.agent = module.make_agent(N, O, A, args, CPU)
        self.rb, self.args = module.ReplayBuffer(N, 20_000, O, A, CPU), args
        variants = {f"period {period}": replace(args, switch_period=period) for period in (1, 10)}
        variants["without"] = replace(args, qmp=False)
        generator = torch.Generator().manual_seed(1)
        self.mixtures = {name: module.Mixture(self.agent, variant, generator) for name, variant in variants.items()}
        self.obs, _ = self.envs.reset(seed=1)
        self.lengths, self.turn = np.zeros(N, dtype=np.int64), 0
        for _ in range(50):
            self.step(2 * torch.rand(N, A) - 1)

    def step(self, actions: Tensor) -> float:
        """One step of all tasks, stored. Returns when the environments were done."""
        actions = actions.numpy()
        next_obs, rewards, terminations, truncations, _ = self.envs.step(actions)
        done = time.perf_counter()
        self.rb.add(self.obs, actions, rewards, next_obs, terminations)
        self.obs = next_obs
        self.lengths = np.where(terminations | truncations, 0, self.lengths + 1)
        return done

    def run(self, name: str, turns: int) -> np.ndarray:
        """Time in ms that each part takes in a turn [parts], mean over some turns."""
        spent = np.zeros(len(self.PARTS))
        for _ in range(turns):
            start = time.perf_counter()
            actions = self.mixtures[name](self.obs, self.lengths)
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
        while time.perf_counter() - start < 3 * seconds or len(spent["without"]) < 3:
            for name, values in spent.items():
                values.append(turn.run(name, max(turn.args.train_frequency, 10)))
        turn.envs.close()
        without = np.array(spent.pop("without"))  # [R, parts]
        where = {"env": env_id, "N": len(turn.lengths), "B": turn.args.batch_size}
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
    turn, size = Turn("MultistageReacher-v0"), 1024
    matrix = torch.randn(size, size)
    work = 200 * flops(lambda: turn.module.update(turn.agent, turn.rb.sample(32), turn.args))
    times = alternate(
        2 * seconds, run=lambda: turn.run("period 1", 200), gemm=lambda: [matrix @ matrix for _ in range(20)]
    )
    bound = times["gemm"] / 20 * work / (2 * size**3)
    rows = [row("1,000 steps", times["run"], bound, env="MultistageReacher-v0", N=5, B=32, variant="period 1")]
    print(f"1,000 steps of MultistageReacher: {rows[0]['ms']} ms, {1 / float(rows[0]['ratio']):.2f} x their arithmetic")
    return rows


def machine() -> str:
    """Processor and versions, for the table's caption."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line
    ]
    return f"{names[0]}, {'AVX-512' if torch.cpu._is_avx512_supported() else 'no AVX-512'}, PyTorch {torch.__version__}"


def draw(rows: list[dict], path: Path) -> None:
    """Stacked against looped over the number of tasks, and the parts of a turn."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 4.2), layout="constrained")
    for panel, part in zip(axes, ("selection", "update"), strict=False):
        for script in SCRIPTS:
            for variant, style in (("loop", "--"), ("stacked", "-")):
                chosen = select(rows, part=part, script=script, variant=variant)
                color = f"C{SCRIPTS.index(script)}"
                label = script if variant == "stacked" else None
                N, ms = ([float(line[name]) for line in chosen] for name in ("N", "ms"))
                panel.plot(N, ms, style, marker="o", markersize=3, color=color, label=label)
        panel.set(title=f"one {part} (dashed: a loop over tasks)", xlabel="tasks", ylabel="ms")
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
    text = f"One core of: {rows[0]['machine']}.\n\nLoop / stacked, by number of tasks:\n\n"
    lines = []
    for part in ("selection", "update"):
        for script in SCRIPTS:
            chosen = select(rows, part=part, script=script, variant="stacked")
            lines.append([f"{part}, `{script}.py`", *(f"{line['ratio']} ({line['ms']} ms)" for line in chosen)])
    text += markdown(["", *map(str, TASKS)], lines)
    text += "\nRate of an update of `qmp_sac.py`, as a part of the rate of a large matrix product:\n\n"
    lines = []
    for line in select(rows, part="arithmetic", variant="update"):
        alone, bound, compiled = (
            select(rows, part="arithmetic", variant=variant, N=line["N"], B=line["B"])[0]
            for variant in ("alone", "at the GEMM rate", "compiled")
        )
        lines.append(
            [line["N"], line["B"], f"{bound['ms']} ms", f"{alone['ms']} ms", f"{line['ms']} ms", line["ratio"]]
        )
    text += markdown(
        ["N", "B", "at that rate", "the same products alone", "update", "part of the rate", "update with `--compile`"],
        lines,
    )
    text += "\nA turn of training (a step of every task, and the updates that belong to it), with QMP:\n\n"
    lines = []
    for line in select(rows, part="turn", variant="period 1"):
        where = {"env": line["env"], "variant": "period 1"}
        parts = [select(rows, part=part, **where)[0]["ms"] for part in Turn.PARTS]
        often = select(rows, part="turn", env=line["env"], variant="period 10")[0]["ratio"]
        lines.append([line["env"], f"{line['ms']} ms", *(f"{ms} ms" for ms in parts), line["ratio"], often])
    head = ["", "turn", *Turn.PARTS, "with / without QMP, choosing in every step", "in every tenth"]
    text += markdown(head, lines)
    (line,) = select(rows, part="1,000 steps")
    share = 1 / float(line["ratio"])
    return (
        f"{text}\n1,000 steps of MultistageReacher with QMP and 200 updates of its five tasks take "
        f"{float(line['ms']) / 1e3:.2f} s, {share:.2f} times as long as their arithmetic alone would take at the "
        "rate of a large matrix product.\n"
    )


def main(args: Args) -> None:
    """Measure everything, write the CSV file, the plot and the tables."""
    torch.set_num_threads(1)
    rows = [
        *against_arithmetic(args.seconds),
        *thousand_steps(args.seconds),
        *whole_turns(args.seconds),
        *in_bfloat16(args.seconds),
        *against_loops(args.seconds),
    ]
    write(args.output / "speed.csv", [line | {"machine": machine()} for line in rows])
    rows = read(args.output / "speed.csv")
    draw(rows, args.output / "speed.png")
    if args.output == RESULTS:
        insert(ROOT / "benchmark" / "README.md", tables(rows), "speed")


if __name__ == "__main__":
    main(tyro.cli(Args))
