"""How long is a turn of training, and its parts; what does the switch cost; what is gained by stacking N agents?

    python benchmark/speed.py                                         # a table, in some minutes
    python benchmark/speed.py --cuda --csv benchmark/results/speed.csv
    python benchmark/speed.py --env-ids --tasks 10 --batch-size 256   # ten tasks without environments

In a turn every task acts, steps and stores, and the turn's share of the updates is made: by qmp_sac.py with QMP,
without, and by N plain agents of `torch.nn` modules with Adams of their own, which choose and learn the same, with QMP.
Times are medians in ms of rounds in which all take turns: of the processor's time, with one thread; on a GPU of the
clock's. Measure on an idle machine. Environments are trained as in benchmark/run.py, tasks without one by the defaults.
"""

import copy
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import tyro
from run import ROOT, command
from torch import Tensor, nn

sys.path.insert(0, str(ROOT))
import qmp_sac  # noqa: E402
from envs import make_vec  # noqa: E402


@dataclass
class Args:
    """Arguments."""

    env_ids: tuple[str, ...] = ("PointReach-v0", "MultistageReacher-v0", "Maze-v0", "MetaWorldMT10-v3")
    """environments"""
    tasks: tuple[int, ...] = (1, 2, 5, 10, 25, 50)
    """numbers of tasks without environments"""
    batch_size: int = 32
    """of tasks without environments"""
    seconds: float = 10.0
    """time for each environment or number of tasks"""
    cuda: bool = False
    """measure on the GPU"""
    csv: Path | None = None
    """file to write the table to"""


class PlainAgent:
    """One SAC agent, as one would write it without a stack."""

    def __init__(self, O: int, A: int, args: qmp_sac.Args, device: torch.device):
        def mlp(*sizes: int) -> nn.Sequential:
            pairs = zip(sizes, sizes[1:], strict=False)
            return nn.Sequential(*[layer for i, o in pairs for layer in (nn.Linear(i, o), nn.ReLU())][:-1]).to(device)

        self.args, hidden = args, args.hidden_sizes
        self.actor = mlp(O, *hidden, 2 * A)
        self.qf = nn.ModuleList(mlp(O + A, *hidden, 1) for _ in range(2))
        self.qf_target = copy.deepcopy(self.qf)
        self.log_alpha = torch.full((), math.log(args.alpha), device=device, requires_grad=True)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=args.policy_lr, fused=True)
        self.q_optimizer = torch.optim.Adam(self.qf.parameters(), lr=args.q_lr, fused=True)
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=args.q_lr, fused=True)

    def act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [B, A] by noise [B, A] in states [B, O], and their log-probabilities [B]."""
        mean, log_std = self.actor(obs).chunk(2, dim=-1)
        return qmp_sac.squash(mean, log_std.clamp(-20, 2), noise)

    @staticmethod
    def rate(qf: nn.ModuleList, obs: Tensor, actions: Tensor) -> list[Tensor]:
        """Both Q-values [B] of states [B, O] and actions [B, A]."""
        return [q(torch.cat([obs, actions], -1)).squeeze(-1) for q in qf]

    def update(self, data: qmp_sac.Batch, noise: Tensor) -> None:
        """One update of everything from a batch of this task, by noise [2, B, A]."""
        alpha = self.log_alpha.detach().exp()
        with torch.no_grad():
            next_actions, next_log_prob = self.act(data.next_obs, noise[0])
            value = torch.min(*self.rate(self.qf_target, data.next_obs, next_actions)) - alpha * next_log_prob
            target = data.rewards + self.args.gamma * (1 - data.terminations) * value
        losses = [nn.functional.mse_loss(q, target) for q in self.rate(self.qf, data.obs, data.actions)]
        qmp_sac.step_optimizer(self.q_optimizer, sum(losses))
        actions, log_prob = self.act(data.obs, noise[1])
        loss = (alpha * log_prob - torch.min(*self.rate(self.qf, data.obs, actions))).mean()
        qmp_sac.step_optimizer(self.actor_optimizer, loss)
        loss = -self.log_alpha * (log_prob.detach() - actions.shape[-1]).mean()
        qmp_sac.step_optimizer(self.alpha_optimizer, loss)
        with torch.no_grad():
            for target, parameter in zip(self.qf_target.parameters(), self.qf.parameters(), strict=True):
                target.lerp_(parameter, self.args.tau)


@torch.no_grad()
def plain_act(agents: list[PlainAgent], obs: Tensor, noise: Tensor) -> Tensor:
    """Actions [N, A] in states [N, O] of the policies that the Q-switch chooses, by noise [N, A]: loops over agents."""
    candidates = torch.stack([agent.act(obs, torch.zeros_like(noise))[0] for agent in agents], 1)  # [N, P, A]
    actions = []
    for i, agent in enumerate(agents):
        scores = torch.min(*agent.rate(agent.qf, obs[i].expand(len(agents), -1), candidates[i]))
        actions.append(agents[int(scores.argmax())].act(obs[i : i + 1], noise[i : i + 1])[0])
    return torch.cat(actions)


def measure(functions: dict[str, Callable], seconds: float, device: torch.device) -> dict[str, float]:
    """Median time in ms of each function, in rounds of all of them, for so long."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times, end = {name: [] for name in functions}, time.time() + seconds
    while time.time() < end or len(next(iter(times.values()))) < 4:
        for name, function in functions.items():
            begin = clock()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (clock() - begin))
    return {name: float(pd.Series(values[1:]).median()) for name, values in times.items()}  # the first was to warm up


def parts(env_id: str, N: int, args: qmp_sac.Args, device: torch.device) -> tuple[int, dict[str, Callable]]:
    """The number of tasks (N, if `env_id` is empty), and functions that do the parts of a turn."""
    O, A = 15, 6  # as in MultistageReacher
    envs = make_vec(env_id, 1) if env_id else None
    if envs:
        N, O, A = envs.num_envs, envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    obs = envs.reset()[0] if envs else torch.randn(N, O).numpy()
    zeros, B = np.zeros(N, dtype=np.int64), args.batch_size
    agent = qmp_sac.Agent(N, O, A, args).to(device)
    parameters = {"q": agent.qf.parameters(), "actor": agent.actor.parameters(), "alpha": [agent.log_alpha]}
    optimizers = {name: torch.optim.Adam(values, fused=True) for name, values in parameters.items()}
    rb, plain = qmp_sac.ReplayBuffer(N, O, A, 5_000, device), [PlainAgent(O, A, args, device) for _ in range(N)]
    for field in rb.data:
        field.uniform_(-1, 1)
    rb.data.terminations.zero_()
    rb.added = rb.capacity
    qmp, base = (qmp_sac.Mixture(agent, args, probability) for probability in (args.own_policy_prob, 1.0))
    actions = qmp.act(obs, zeros)

    def plain_update() -> None:
        data, noise = rb.sample(B), torch.randn(2, N, B, A, device=device)
        for i, agent in enumerate(plain):
            agent.update(qmp_sac.Batch(*(field[i] for field in data)), noise[:, i])

    def plain_choice() -> None:
        plain_act(plain, torch.as_tensor(obs, device=device), torch.randn(N, A, device=device)).cpu()

    functions = {
        "act": lambda: qmp.act(obs, zeros),
        "act, base": lambda: base.act(obs, zeros),
        "act, plain": plain_choice,
        "store": lambda: rb.add(obs, actions, zeros, obs, zeros),
        "update": lambda: qmp_sac.update(agent, optimizers, rb.sample(B), args),
        "update, plain": plain_update,
    }
    return N, functions | ({"step": lambda: envs.step(actions)} if envs else {})


def main(args: Args) -> pd.DataFrame:
    """Measure everything. Returns the table that is printed."""
    torch.set_num_threads(1)
    device, rows = torch.device("cuda" if args.cuda else "cpu"), []
    for case in (*args.env_ids, *args.tasks):
        env_id, N = (case, 0) if isinstance(case, str) else ("", case)
        flags = command(env_id, "qmp_sac", "qmp", 1)[4:] if env_id else ["--batch-size", str(args.batch_size)]
        qmp_args = tyro.cli(qmp_sac.Args, args=flags)
        N, functions = parts(env_id, N, qmp_args, device)
        ms = measure(functions, args.seconds, device)
        shares = {"act": 1, "step": 1, "store": 1, "update": qmp_args.gradient_steps / qmp_args.train_frequency}
        turn = {
            part: [share * ms.get(part + kind, ms[part]) for kind in ("", ", base", ", plain")]
            for part, share in shares.items()
            if part in ms
        }
        turn["turn"] = [sum(column) for column in zip(*turn.values(), strict=True)]
        rows += [[env_id, N, qmp_args.batch_size, part, *columns] for part, columns in turn.items()]
    table = pd.DataFrame(rows, columns=["environment", "N", "B", "part of a turn", "qmp", "base", "plain"])
    table["qmp / base"], table["plain / qmp"] = table["qmp"] / table["base"], table["plain"] / table["qmp"]
    where = torch.cuda.get_device_name() if args.cuda else f"one thread of {os.cpu_count()}"
    print(f"ms on {where}, PyTorch {torch.__version__}\n{table.to_string(index=False, float_format='%.3g')}")
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.4g")
    return table


if __name__ == "__main__":
    main(tyro.cli(Args))
