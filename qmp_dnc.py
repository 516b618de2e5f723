"""QMP with Divide-and-Conquer RL, in one file. Details and logged metrics: docs/qmp_dnc.md.

    python qmp_dnc.py                                          # PointReach, five tasks: some minutes on one core
    python qmp_dnc.py --no-qmp                                 # the base method alone: Divide-and-Conquer
    python qmp_dnc.py --distill-period 10_000                  # and a central policy, from which all go on now and then
    python qmp_dnc.py --resume runs/x                          # go on with a run, or with --eval-only evaluate it

Q-switch Mixture of Policies (Zhang et al., ICLR 2025, arXiv 2302.00671): while a task collects data, its critics rate
the policies of all tasks in each state, and the best one acts. Nothing else changes: policies and critics learn by
soft actor-critic from their own task's data, and as in Divide-and-Conquer RL (Ghosh et al., ICLR 2018, arXiv
1711.09874) policies are pulled together by their divergences, and if asked for replaced now and then by one that
imitates the data of all. Start reading at `q_switch`, then the loop in `main`.
Letters in shapes: N tasks, P policies (= N), B batch per task, O observation, A action, K samples per policy.
"""

import copy
import itertools
import json
import math
import os
import signal
import sys
import time
from collections import namedtuple
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import gymnasium as gym
import numpy as np
import torch
import tyro
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tyro.constructors import PrimitiveConstructorSpec as Spec

from envs import allocate, evaluate, format_table, keep_freed_memory, make_vec

SCRIPT = Path(__file__).resolve()
CACHE_ROWS = 1024  # a CPU's cache holds the activations of about so many rows of a batch
AGREEMENT_STATES = 128  # of every task, in which the twin critics' choices are compared at an evaluation
Steps = Annotated[int, Spec(1, "INT", lambda x: int(f"{float(x[0]):.17g}"), lambda x: True, lambda x: [str(x)])]  # 1e6


@dataclass
class Args:
    """Flags of the run, then SAC's from --total-timesteps on, then QMP's from --qmp on. Steps are summed over tasks."""

    env_id: str = "PointReach-v0"
    """PointReach-v0 PointReach2-v0 PointReach9-v0 MultistageReacher-v0 Maze-v0 Walker2dMT4-v0 KitchenMT10-v0
    MetaWorldCDS-v0 MetaWorldMT10-v3 MetaWorldMT25-v3 MetaWorldMT50-v3 MetaWorld:TASK,... package.module:function"""
    seed: int = 1
    """seed of everything random"""
    cuda: bool = True
    """train on the GPU if there is one"""
    num_threads: int = 1
    """CPU threads of PyTorch; more than one pays for large batches only"""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """torch.set_float32_matmul_precision: less is faster, and on GPUs and some CPUs rounds the factors"""
    compile: bool = False
    """torch.compile the update: half a minute at the start, and little gain on a CPU"""
    vectorization: Literal["sync", "async"] = "sync"
    """step the tasks in this process, or in a process each"""
    run_dir: str | None = None
    """folder of the run; default runs/{env_id}__{script}[-no-qmp]__{seed}__{time}-{process}"""
    resume: str | None = None
    """folder of a run to continue from its last checkpoint, with its arguments"""
    checkpoint_frequency: Steps = 0
    """steps between checkpoints, and always one at the end; 0 means a tenth of the training, at most 100,000"""
    eval_frequency: Steps = 0
    """steps between evaluations, and always one at the end; 0 means a tenth of the training, at most 100,000"""
    eval_episodes: int = 5
    """episodes per task in an evaluation of the tasks' own policies, by mean actions"""
    eval_mixture: bool = False
    """evaluate the tasks' mixtures too"""
    eval_only: bool = False
    """evaluate the policies and the mixtures of the run in --resume, and train nothing"""
    capture_video: bool = False
    """record each task's first episode of every evaluation into the run's videos/"""
    track: bool = False
    """log to Weights & Biases too"""
    wandb_project_name: str = "qmp"
    """W&B project"""
    wandb_entity: str | None = None
    """W&B team or user"""
    total_timesteps: Steps = 40_000
    """length of training"""
    learning_starts: Steps = 2_000  # a resumed run cannot change what follows
    """uniformly random actions, and no training, until then"""
    buffer_size: Steps = 1_000_000
    """replay transitions per task"""
    batch_size: int = 32
    """transitions per task in an update"""
    gamma: float = 0.99
    """discount"""
    tau: float = 0.005
    """speed of the target critics"""
    policy_lr: float = 3e-4
    """learning rate of the policies"""
    q_lr: float = 3e-4
    """learning rate of the critics and of alpha"""
    train_frequency: int = 1
    """turns of the loop (one step in every task) between trainings"""
    gradient_steps: int = 1
    """updates of all tasks at each training"""
    alpha: float = 1.0
    """entropy temperature: its first value, and with --no-autotune its only one"""
    autotune: bool = True
    """tune each task's alpha to the target entropy -A"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """units of each hidden layer"""
    kl_coef: float = 0.01
    """beta, the weight of the divergences between policies; 0 is No-Sharing"""
    distill_period: Steps = 0
    """steps between distillations of all policies into one, from which all go on; 0 means never"""
    distill_steps: int = 100
    """gradient steps of a distillation"""
    qmp: bool = True
    """act with the Q-switch mixture; --no-qmp is the base method alone"""
    switch_samples: int = 0
    """K actions that rate a candidate policy (Eq. 2); 0 rates its mean action, as in the paper's experiments"""
    switch_entropy: bool = False
    """count the candidate's entropy in its rating (Eq. 2)"""
    switch_rule: Literal["argmax", "uniform"] = "argmax"
    """the best candidate acts (QMP), or any one (a control)"""
    switch_period: int = 1
    """steps of an episode for which a task keeps the policy that it chose"""
    own_policy_prob: float = 0.0
    """chance to skip the switch and act with the task's own policy"""

    def __post_init__(self):
        may_be_0 = "seed learning_starts eval_frequency checkpoint_frequency switch_samples gamma tau own_policy_prob"
        may_be_0 += " kl_coef distill_period"
        for name, value in vars(self).items():
            pos, high = name not in may_be_0.split(), 1 if name in ("gamma", "tau", "own_policy_prob") else 1e18
            numbers = value if type(value) is tuple else [value] if type(value) in (int, float) else [1]
            if not (numbers and all(0 <= x <= high and (x or not pos) for x in numbers)):
                raise ValueError(f"--{name.replace('_', '-')} must be {'above' if pos else 'at least'} 0, up to {high}")
            if not self.qmp and name.startswith(("switch_", "own_policy_")) and value != getattr(Args, name):
                raise ValueError(f"--{name.replace('_', '-')} means nothing with --no-qmp")
        frequency = min(math.ceil(self.total_timesteps / 10), 100_000)
        self.eval_frequency = self.eval_frequency or frequency
        self.checkpoint_frequency = self.checkpoint_frequency or frequency
        for wrong, message in (
            (not self.resume and self.learning_starts >= self.total_timesteps, "--learning-starts leaves no training"),
            (self.switch_entropy and not self.switch_samples, "--switch-entropy needs --switch-samples, 1 or more"),
            (self.eval_only and not self.resume, "--eval-only needs --resume, the folder of a run"),
            (self.resume and self.run_dir, "--run-dir is of a new run, --resume of one that exists"),
            (not f"{self.run_dir}{self.resume}".isprintable(), "the folder's name cannot be printed"),
        ):
            if wrong:
                raise ValueError(message)


class StackedLinear(nn.Module):
    """S linear layers side by side: [S, B, in] -> [S, B, out], each slice initialised as `torch.nn.Linear` is."""

    def __init__(self, stack: int, in_features: int, out_features: int):
        super().__init__()
        layers = [nn.Linear(in_features, out_features) for _ in range(stack)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))  # [S, in, out]
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))  # [S, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        return stacked_linear(x, self.weight, self.bias)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [S, B, in], weight [S, in, out], bias [S, 1, out] -> [S, B, out]."""
    if weight.shape[-1] == 1:  # matrix products with a single column are slow
        return (x * weight.mT).sum(-1, keepdim=True) + bias
    return torch.baddbmm(bias, x, weight)


def perceptrons(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """S perceptrons with the weights and biases of each layer, and ReLU between layers: [S, B, in] -> [S, B, out]."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(stacked_linear(x, weight, bias))
    return stacked_linear(x, weights[-1], biases[-1])


class StackedMLP(nn.Module):
    """S perceptrons side by side, with ReLU between layers: [S, B, sizes[0]] -> [S, B, sizes[-1]].

    A GPU runs all at once. A CPU runs a few at a time, through all layers, so that their activations stay in its cache.
    """

    def __init__(self, stack: int, *sizes: int):
        super().__init__()
        self.layers = nn.ModuleList(StackedLinear(stack, i, o) for i, o in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        S, B, _ = x.shape
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        few = S
        if x.device.type == "cpu":
            few = max(1, CACHE_ROWS // B)
        if few >= S:
            return perceptrons(x, weights, biases)
        # `split` before the loop, because the gradient of a slice would be as large as that of the whole
        weights = [weight.split(few) for weight in weights]
        biases = [bias.split(few) for bias in biases]
        outputs = []
        for k, part in enumerate(x.split(few)):
            outputs.append(perceptrons(part, [weight[k] for weight in weights], [bias[k] for bias in biases]))
        return torch.cat(outputs)


class Actor(nn.Module):
    """Squashed Gaussian policies of N tasks: mean and log standard deviation before tanh."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.N, self.net = N, StackedMLP(N, O, *hidden_sizes, 2 * A)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs [N, B, O], or [1, B, O] for all policies in the same states -> two of [N, B, A]."""
        mean, log_std = self.net(obs.expand(self.N, -1, -1)).chunk(2, dim=-1)
        return mean, log_std.clamp(-20, 2)


class Critic(nn.Module):
    """Twin critics of N tasks, as one stack of 2N."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.net = StackedMLP(2 * N, O + A, *hidden_sizes, 1)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [N, B, O], actions [N, B, A] -> Q1 and Q2 [2, N, B]."""
        x = torch.cat([obs, actions], dim=-1)
        return self.net(torch.cat([x, x])).view(2, *x.shape[:2])


class Agent(nn.Module):
    """Policies, critics, target critics and temperatures of N tasks."""

    def __init__(self, N: int, O: int, A: int, args: Args):
        super().__init__()
        self.actor, self.qf = Actor(N, O, A, args.hidden_sizes), Critic(N, O, A, args.hidden_sizes)
        self.qf_target = copy.deepcopy(self.qf).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.full((N,), math.log(args.alpha)))
        with torch.random.fork_rng():  # so that without divergences and distillation it is qmp_sac.py
            self.center = Actor(1, O, A, args.hidden_sizes)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(mean + std * noise) [..., A] and their log_prob [...] (SAC, appendix C), from noise [..., A]."""
    x = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))  # log(1 - tanh(x)^2), never infinite
    return torch.tanh(x), log_prob.sum(-1)


@torch.no_grad()
def q_switch(mean, log_std, qf, obs, alpha=None, noise=None) -> tuple[Tensor, Tensor]:
    """Rate every policy in every task's state by that task's critics, and choose the best (paper, section 4).

        score_ij = min(Q1_i, Q2_i)(s_i, tanh mean_j(s_i))               without alpha and noise: the paper's experiments
        score_ij = mean_k [ min(Q1_i, Q2_i)(s_i, a_jk) - alpha_i log pi_j(a_jk | s_i) ],  a_jk ~ pi_j by noise:  Eq. 2

    obs [N, O]: a state of each task; mean, log_std [P, N, A]: every policy's Gaussian before tanh, in these states
    qf: the critics, a function of states [N, B, O] and actions [N, B, A] that returns Q1 and Q2 [2, N, B]
    noise [K, P, N, A]: standard normal, if samples are rated; alpha [N]: temperatures, if their entropy counts too
    Returns the chosen policies [N] and the scores [N, P].
    """
    noise = torch.zeros_like(mean)[None] if noise is None else noise  # zeros make the mean action
    actions, log_prob = squash(mean, log_std, noise)  # [K, P, N, A], [K, P, N]
    K, P, N, A = actions.shape
    actions = actions.permute(2, 1, 0, 3).reshape(N, P * K, A)
    scores = qf(obs[:, None].expand(N, P * K, -1), actions).amin(0).view(N, P, K)
    if alpha is not None:
        scores = scores - alpha[:, None, None] * log_prob.permute(2, 1, 0)
    scores = scores.mean(-1)  # [N, P]
    return best_policies(scores[:, None]).squeeze(1), scores


def best_policies(scores: Tensor) -> Tensor:
    """The policies with the highest scores, [N, B, P] -> [N, B]; a tie goes to the task's own policy."""
    own = torch.eye(len(scores), device=scores.device)[:, None]  # [N, 1, P]
    # Batched arithmetic rounds equal scores apart.
    tolerance = 1e-5 * scores.abs().amax(-1, keepdim=True).clamp(min=1)  # [N, B, 1]
    return (scores + tolerance * own).argmax(-1)


@torch.no_grad()
def switch_agreement(agent: Agent, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Does the switch know, or guess? What the twin critics say of each other's choice, in states obs [N, B, O].

    agreement [N]: share of the states in which both put the same policy first; about 1 / N if they guess
    gap [N]: how much better than the own policy is the one that a critic chooses, as the other critic sees it; about
        0, or below, if they guess. Blind to what both get wrong.
    """
    N, B, O = obs.shape
    mean, _ = agent.actor(obs.reshape(1, N * B, O))  # [P, N B, A], every policy in every state
    actions = torch.tanh(mean).view(N, N, B, -1).permute(1, 2, 0, 3)  # [N, B, P, A]
    states = obs[:, :, None].expand(N, B, N, O)  # [N, B, P, O]
    q = agent.qf(states.flatten(1, 2), actions.flatten(1, 2)).view(2, N, B, N)  # [2, N, B, P]
    chosen = torch.stack([best_policies(q[0]), best_policies(q[1])])  # [2, N, B]
    agreement = (chosen[0] == chosen[1]).float().mean(-1)
    other_q = q.flip(0)  # [2, N, B, P], by the critic that did not choose
    q_chosen = other_q.gather(-1, chosen[..., None]).squeeze(-1)  # [2, N, B]
    q_own = other_q.diagonal(dim1=1, dim2=3).mT  # [2, N, B]
    return agreement, (q_chosen - q_own).mean((0, 2))


class Mixture:
    """Acts for every task: by its Q-switch mixture, with `own_policy_prob` 1 by its own policy (the base method)."""

    def __init__(self, agent: Agent, args: Args, own_policy_prob: float, mean_actions: bool = False):
        self.agent, self.args, self.own_policy_prob, self.mean_actions = agent, args, own_policy_prob, mean_actions
        self.tasks = self.policies = torch.arange(agent.actor.N, device=agent.log_alpha.device)  # [N]
        # [N, P], steps in which each policy acted since the last evaluation
        self.counts = torch.zeros(agent.actor.N, agent.actor.N, dtype=torch.float64, device=self.tasks.device)

    @torch.no_grad()
    def act(self, obs: np.ndarray, episode_lengths: np.ndarray) -> np.ndarray:
        """Actions [N, A] in the states obs [N, O], which are steps episode_lengths [N] of their episodes."""
        agent, args, tasks = self.agent, self.args, self.tasks
        obs = torch.as_tensor(obs, dtype=torch.float32, device=tasks.device)
        if self.own_policy_prob == 1:
            mean, log_std = (x.squeeze(1) for x in agent.actor(obs.unsqueeze(1)))  # [N, A]
        else:
            mean, log_std = agent.actor(obs.unsqueeze(0))  # [P, N, A], every policy in the state of every task
            alpha = agent.log_alpha.exp() if args.switch_entropy else None
            noise = torch.randn(args.switch_samples, *mean.shape, device=tasks.device) if args.switch_samples else None
            chosen, scores = q_switch(mean, log_std, agent.qf, obs, alpha, noise)  # [N], [N, P]
            if args.switch_rule == "uniform":
                chosen = torch.multinomial(torch.ones_like(scores), 1).squeeze(1)
            skip = torch.rand(len(tasks), device=tasks.device) < self.own_policy_prob  # [N]
            due = torch.as_tensor(episode_lengths % args.switch_period == 0, device=tasks.device)  # [N]
            self.policies = torch.where(due, torch.where(skip, tasks, chosen), self.policies)  # task i's own is i
            mean, log_std = mean[self.policies, tasks], log_std[self.policies, tasks]  # [N, A]
        self.counts[tasks, self.policies] += 1
        noise = torch.zeros_like(mean) if self.mean_actions else torch.randn_like(mean)
        return squash(mean, log_std, noise)[0].cpu().numpy()


Batch = namedtuple("Batch", ["obs", "actions", "rewards", "next_obs", "terminations"])  # each [N, B, ...]


class ReplayBuffer:
    """The last `capacity` transitions of each of N tasks, in tensors [capacity, N, ...]."""

    def __init__(self, N: int, O: int, A: int, capacity: int, device: torch.device):
        self.data = Batch(*allocate([(capacity, N, *shape) for shape in ((O,), (A,), (), (O,), ())], device))
        self.tasks, self.capacity, self.added = torch.arange(N, device=device)[:, None], capacity, 0

    def add(self, *transition: np.ndarray) -> None:
        """Store one transition of every task; the arrays [N, ...] come in the order of `Batch`."""
        for field, value in zip(self.data, transition, strict=True):
            field[self.added % self.capacity] = torch.as_tensor(value, dtype=torch.float32)
        self.added += 1

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Batch:
        """Draw B transitions of each task, with replacement."""
        size, N = min(self.added, self.capacity), len(self.tasks)
        index = torch.randint(size, (N, batch_size), device=self.tasks.device, generator=generator)  # [N, B]
        return Batch(*(field[index, self.tasks] for field in self.data))

    def state_dict(self) -> dict:  # by way of NumPy, because a slice of a tensor is saved with all of its storage
        return {"added": self.added, "filled": [torch.from_numpy(x[: self.added].cpu().numpy()) for x in self.data]}

    def load_state_dict(self, state: dict) -> None:
        self.added = state["added"]
        for field, filled in zip(self.data, state["filled"], strict=True):
            field[: len(filled)] = filled


def step_optimizer(optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    """Descend the sum of per-task losses: one Adam over the stack then equals one Adam per task."""
    optimizer.zero_grad()
    losses.sum().backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()


def kl_divergences(mean: Tensor, log_std: Tensor) -> Tensor:
    """Sum over j of KL(pi_j || pi_i) of Gaussians, gradient to pi_i alone: mean, log_std [N, S, A] -> [N (i), S].

    It equals that of the policies after tanh, because tanh is a bijection. Averages over j take the place of N^2 terms:
    that of (mean_j - mean_i)^2 is that of (mean_j - center)^2, plus (mean_i - center)^2, if center is that of mean_j.
    """
    mean, log_std = mean.double(), log_std.double()  # in single precision close policies and far means lose digits
    mean_j, log_std_j = mean.detach(), log_std.detach()
    center = mean_j.mean(0)  # [S, A]
    spread = ((2 * log_std_j).exp() + (mean_j - center).square()).mean(0)  # [S, A]
    ratio = (spread + (mean - center).square()) * (-2 * log_std).exp()  # [N, S, A]
    return len(mean) * (log_std - log_std_j.mean(0) + 0.5 * (ratio - 1)).sum(-1)


def distill(agent: Agent, optimizers: dict, rb: ReplayBuffer, args: Args) -> None:
    """Fit the central policy to the actions in the replay of all tasks; all policies go on from it (DnC, section 4.2).

    The likelihood is that of the actions before tanh; the term that tanh adds does not depend on the policy.
    """
    for _ in range(args.distill_steps):
        data = rb.sample(args.batch_size)
        mean, log_std = agent.center(data.obs.flatten(0, 1).unsqueeze(0))  # [1, N B, A]
        x = torch.atanh(data.actions.flatten(0, 1).clamp(-1 + 1e-6, 1 - 1e-6))
        loss = (log_std + 0.5 * ((x - mean) / log_std.exp()).square()).sum(-1).mean(-1)
        step_optimizer(optimizers["center"], loss)
    with torch.no_grad():
        for policy, center in zip(agent.actor.parameters(), agent.center.parameters(), strict=True):
            policy.copy_(center.expand_as(policy))


def update(agent: Agent, optimizers: dict, data: Batch, args: Args) -> dict[str, Tensor]:
    """One SAC update of everything, for all tasks at once. Returns what to log, each [N]."""
    noise = torch.randn(2, *data.actions.shape, device=data.obs.device)  # [2, N, B, A]
    alpha = agent.log_alpha.detach().exp()[:, None]  # [N, 1]
    # critics: towards r + gamma (1 - terminated) (min target-Q - alpha log pi)
    with torch.no_grad():
        next_actions, next_log_prob = squash(*agent.actor(data.next_obs), noise[0])
        min_qf_next_target = agent.qf_target(data.next_obs, next_actions).amin(0) - alpha * next_log_prob
        next_q_value = data.rewards + args.gamma * (1 - data.terminations) * min_qf_next_target  # [N, B]
    qf_values = agent.qf(data.obs, data.actions)  # [2, N, B]
    qf_losses = (qf_values - next_q_value).square().mean(-1)  # [2, N]
    step_optimizer(optimizers["q"], qf_losses)
    # policies: down alpha log pi - min Q + beta sum_j KL(pi_j || pi_i), in the states of all tasks
    actions, log_prob = squash(*agent.actor(data.obs), noise[1])
    actor_loss = (alpha * log_prob - agent.qf(data.obs, actions).amin(0)).mean(-1)  # [N]
    kl_penalty = torch.zeros_like(actor_loss)
    if args.kl_coef:
        divergences = kl_divergences(*agent.actor(data.obs.flatten(0, 1).unsqueeze(0)))  # [N, N B]
        kl_penalty = args.kl_coef * divergences.mean(-1).float()  # [N]
    step_optimizer(optimizers["actor"], actor_loss + kl_penalty)
    # temperatures: towards the target entropy -A
    alpha_loss = -agent.log_alpha * (log_prob.detach() - actions.shape[-1]).mean(-1)  # [N]
    if args.autotune:
        step_optimizer(optimizers["alpha"], alpha_loss)
    with torch.no_grad():
        torch._foreach_lerp_([*agent.qf_target.parameters()], [*agent.qf.parameters()], args.tau)
    info = {"qf1_values": qf_values[0].mean(-1), "qf2_values": qf_values[1].mean(-1), "entropy": -log_prob.mean(-1)}
    info |= {"qf1_loss": qf_losses[0], "qf2_loss": qf_losses[1], "actor_loss": actor_loss, "alpha_loss": alpha_loss}
    return {name: values.detach() for name, values in (info | {"alpha": alpha[:, 0], "kl_penalty": kl_penalty}).items()}


def main(argv: list[str] | None = None) -> Agent | None:
    """Train, resume or evaluate, as the command line says. Returns the agent that was trained."""
    args, state, cwd = tyro.cli(Args, args=argv), None, Path.cwd()  # which environments may change
    if args.resume:
        try:
            state = torch.load(f"{args.resume}/checkpoint.pt", map_location="cpu", mmap=True, weights_only=True)
            saved = Args(**state[SCRIPT.name] | {"resume": args.resume, "run_dir": None})
        except Exception:  # a broken file may raise anything
            raise gym.error.Error(f"no checkpoint of {SCRIPT.name}, or a broken one, in {args.resume}") from None
        args, names = tyro.cli(Args, args=argv, default=saved), list(vars(saved))
        for name in ("env_id", "seed", *names[names.index("learning_starts") :]):
            if getattr(args, name) != getattr(saved, name):
                raise gym.error.Error(f"{name} of this run is {getattr(saved, name)} and cannot change")
    first_step = state["global_step"] if state else 0
    keep_freed_memory()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    device, signals = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu"), []
    for number in (signal.SIGINT, signal.SIGTERM):  # the first stops after this turn, a second one at once
        signal.signal(number, lambda number, _: (signals.append(number), signal.signal(number, signal.SIG_DFL)))
    envs = make_vec(args.env_id, args.seed, args.vectorization)
    N, O, A = envs.num_envs, envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    agent = Agent(N, O, A, args).to(device)
    optimizers = {
        "q": torch.optim.Adam(agent.qf.parameters(), lr=args.q_lr, fused=True),
        "actor": torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr, fused=True),
        "alpha": torch.optim.Adam([agent.log_alpha], lr=args.q_lr, fused=True),
        "center": torch.optim.Adam(agent.center.parameters(), lr=args.policy_lr, fused=True),
    }
    rb = ReplayBuffer(N, O, A, min(args.buffer_size, math.ceil(max(args.total_timesteps, first_step) / N)), device)
    mixture = Mixture(agent, args, args.own_policy_prob if args.qmp else 1.0)
    compiled_update = torch.compile(update) if args.compile else update
    run = Run(cwd, args, state, signals, mixture, {"envs": envs, "agent": agent, "replay": rb, **optimizers})
    if state and (args.eval_only or state["interrupted"]):  # a signal came during an evaluation
        run.evaluate(first_step)
    if signals:
        sys.exit(128 + signals[0])
    if args.eval_only:
        return None
    steps, done = range(first_step + N, args.total_timesteps + N, N), first_step // N
    started, new_episodes, state = time.time(), True, None
    for global_step in tqdm(steps, initial=done, total=done + len(steps), unit="step", unit_scale=N, disable=None):
        if new_episodes:  # at the start and after every checkpoint, from a seed that a resumed run knows too
            obs, _ = envs.reset(seed=[args.seed, global_step - N, 1])
        at_random = global_step <= args.learning_starts
        actions = (2 * torch.rand(N, A) - 1).numpy() if at_random else mixture.act(obs, envs.episode_lengths)
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        rb.add(obs, actions, rewards, infos["real_next_obs"], terminations)
        obs = next_obs
        for i in np.flatnonzero(terminations | truncations):
            for name in ("episodic_return", "episodic_length"):
                run.writer.add_scalar(f"charts/{name}/{envs.tasks[i]}", infos["episode"][name][i], global_step)
        if global_step > args.learning_starts and global_step % (args.train_frequency * N) == 0:
            for _ in range(args.gradient_steps):
                info = compiled_update(agent, optimizers, rb.sample(args.batch_size), args)
            if args.distill_period and global_step % args.distill_period < args.train_frequency * N:
                distill(agent, optimizers, rb, args)
            if global_step % (100 * args.train_frequency * N) == 0:
                run.log("losses", {name: values.cpu().numpy() for name, values in info.items()}, global_step)
                run.writer.add_scalar("charts/SPS", (global_step - first_step) / (time.time() - started), global_step)
        if global_step % args.eval_frequency < N or global_step == steps[-1]:
            run.evaluate(global_step)
        new_episodes = global_step % args.checkpoint_frequency < N or global_step == steps[-1] or signals
        if new_episodes:
            run.save(global_step)
            if signals:
                print(f"stopped at step {global_step}; to go on: python {SCRIPT.name} --resume {run.dir}")
                sys.exit(128 + signals[0])
    run.writer.close()
    print(f"step {first_step + N * len(steps)}: results in {run.dir}; to plot: python benchmark/plot.py {run.dir}")
    return agent


class Run:
    """A run's folder: args.json, TensorBoard events, evaluations.csv, checkpoint.pt (restored from `state`), videos."""

    def __init__(self, cwd: Path, args: Args, state: dict | None, signals: list, mixture: Mixture, parts: dict):
        self.args, self.signals, self.mixture, self.parts, self.interrupted = args, signals, mixture, parts, False
        method, now = f"{SCRIPT.stem}{'' if args.qmp else '-no-qmp'}", f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        name = f"{args.env_id.replace(':', '-')}__{method}__{args.seed}__{now}"
        self.dir = cwd / (args.resume or args.run_dir or f"runs/{name}")
        self.csv = self.dir / ("final_evaluation.csv" if args.eval_only else "evaluations.csv")
        dead = (self.dir / "running.lock").exists() and not (self.dir / "checkpoint.pt").exists()  # and can start again
        if self.dir.exists() and not args.resume and not dead:
            raise gym.error.Error(f"{self.dir} exists; choose another --run-dir, or go on with --resume")
        render_mode = "rgb_array" if args.capture_video else None
        self.envs = make_vec(args.env_id, args.seed, args.vectorization, render_mode, evaluation=True)
        print(f"{args.env_id}: {', '.join(self.envs.tasks)}; {mixture.tasks.device}; in {self.csv}")
        if state:  # all that changes in training, but for the environments, which start new episodes
            for name, part in parts.items():
                part.load_state_dict(state[name])
            mixture.counts.copy_(state["counts"])
            torch.set_rng_state(state["rng"])
            torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])
        if args.eval_only:
            return
        try:
            self.dir.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(self.dir / "running.lock").acquire(blocking=False)  # one process per folder
        except OSError as error:  # filelock's Timeout is one
            raise gym.error.Error(f"cannot use {self.dir}, or another run does: {error}") from None
        self.wandb_id = (state and state["wandb_id"]) or (args.track and os.urandom(8).hex())
        if args.track:
            import wandb

            config = {"project": args.wandb_project_name, "entity": args.wandb_entity, "config": vars(args)}
            try:
                wandb.init(**config, name=self.dir.name, id=self.wandb_id, resume="allow", sync_tensorboard=True)
            except wandb.errors.Error as error:
                raise gym.error.Error(f"--track: {error} (WANDB_MODE=offline needs no account)") from None
        open(self.csv, "r+" if state else "w").truncate(state["csv_size"] if state else 0)  # later rows are made again
        git = os.popen(f"git -C '{SCRIPT.parent}' describe --always --dirty 2>/dev/null").read().strip()
        record = {"args": vars(args), "tasks": self.envs.tasks, "cpu": torch.backends.cpu.get_cpu_capability()}
        record["versions"] = {name: version(name) for name in ("torch", "numpy", "gymnasium", "mujoco", "metaworld")}
        (self.dir / "args.json").write_text(json.dumps({"script": SCRIPT.stem, "git_commit": git} | record, indent=2))
        self.writer = SummaryWriter(self.dir, purge_step=state["global_step"] + 1 if state else 0)
        self.writer.add_text("hyperparameters", "\n".join(f"    {k}: {v}" for k, v in vars(args).items()))

    def log(self, group: str, values: dict[str, np.ndarray], global_step: int) -> None:
        """Write values, each [N], to TensorBoard: their mean, and every task's."""
        for name, numbers in values.items():
            self.writer.add_scalar(f"{group}/{name}", numbers.mean(), global_step)
            for task, value in zip(self.envs.tasks, numbers, strict=True):
                self.writer.add_scalar(f"{group}/{name}/{task}", value, global_step)

    def evaluate(self, global_step: int) -> None:
        """Evaluate the tasks' own policies, and if asked for their mixtures: rows of a CSV file, a table, a video."""
        args, envs, counts, found = self.args, self.envs, self.mixture.counts, {}
        shares = (counts / counts.sum(1, keepdim=True)).cpu().numpy()  # [N, P], of steps in training; NaN of none
        generator = torch.Generator(counts.device).manual_seed(global_step)  # so that training draws what it would
        states = self.parts["replay"].sample(AGREEMENT_STATES, generator).obs  # [N, B, O]
        agreement, gap = (x.cpu().numpy() for x in switch_agreement(self.mixture.agent, states))  # [N]
        for acting in ("own", "mixture") if args.eval_mixture or args.eval_only else ("own",):
            actor = Mixture(self.mixture.agent, args, own_policy_prob=float(acting == "own"), mean_actions=True)
            video = self.dir / "videos" / f"{acting}-{global_step}.mp4" if args.capture_video else None
            found[acting] = evaluate(envs, actor, args.eval_episodes, [args.seed, global_step, 2], video, self.signals)
        self.interrupted = any(rows is None for rows in found.values())  # by a signal
        if self.interrupted:
            return
        for acting, rows in found.items():
            rows = rows.assign(agreement=agreement, gap=gap)
            if acting == "own" and not args.eval_only:
                counts.zero_()
                rows[[f"acted/{task}" for task in envs.tasks]] = shares
                switch = {"own_policy": shares.diagonal(), "agreement": agreement, "gap": gap}
                self.log("switch", switch, global_step)
            if not args.eval_only:
                self.log({"own": "eval", "mixture": "eval_mixture"}[acting], rows[[*envs.metrics]], global_step)
            rows = rows.assign(global_step=global_step, acting=acting)[["global_step", "acting", *rows]]
            first = acting == "own" if args.eval_only else not self.csv.stat().st_size
            rows.to_csv(self.csv, mode="w" if first else "a", header=first, index=False)
            tqdm.write(f"step {global_step:,}, {acting}\n{format_table(rows)}")

    def save(self, global_step: int) -> None:
        """Write checkpoint.pt, whole or not at all."""
        N, layers = self.envs.num_envs, self.mixture.agent.parameters()
        if bad := [(len(x), k) for x in layers for k, one in enumerate(x) if not one.isfinite().all()]:
            tasks = {self.envs.tasks[k % N] for size, k in bad if size % N == 0}  # stacks of other sizes are shared
            raise FloatingPointError(f"weights are not finite, of {', '.join(sorted(tasks)) or 'all tasks'}")
        self.writer.flush()
        state = {name: part.state_dict() for name, part in self.parts.items()} | {"counts": self.mixture.counts}
        state |= {SCRIPT.name: vars(self.args) | {"resume": None}, "tasks": self.envs.tasks, "global_step": global_step}
        state |= {"csv_size": self.csv.stat().st_size, "interrupted": self.interrupted, "wandb_id": self.wandb_id}
        state |= {"rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
        try:
            torch.save(state, self.dir / "checkpoint.tmp")
        except RuntimeError as error:  # as PyTorch reports a full disk
            raise OSError(f"cannot write {self.dir / 'checkpoint.tmp'}: {error}") from None
        os.replace(self.dir / "checkpoint.tmp", self.dir / "checkpoint.pt")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # for log files, and in any encoding
    try:
        main()
    except (gym.error.Error, OSError, FloatingPointError) as error:
        print(f"{SCRIPT.name}: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, gym.error.Error) else 1)
