"""QMP with Divide-and-Conquer RL. Details and logged metrics: docs/qmp_dnc.md.

    python qmp_dnc.py                          # PointReach, five tasks: a few minutes on one core
    python qmp_dnc.py --no-qmp                 # the base method alone: Divide-and-Conquer
    python qmp_dnc.py --distill-period 11_000  # all policies restart from a central one
    python qmp_dnc.py --resume runs/x          # continue a run from its last checkpoint

Q-switch Mixture of Policies (Zhang et al., ICLR 2025, arXiv 2302.00671): while a task collects
data, its critics score the policies of all tasks in each state, and the best one acts. Learning
stays as it was: each policy and each critic learns by soft actor-critic from its own task's data,
and, as in Divide-and-Conquer RL (Ghosh et al., ICLR 2018, arXiv 1711.09874), a KL penalty pulls the
policies together. If asked for, a central policy now and then imitates the data of all tasks, and
all policies restart from it.
Start reading at `q_switch`, then the loop in `train`.

Letters in shapes: N tasks, P policies (= N), B batch per task, O observation, A action,
K samples per policy, S networks in a stack.
"""

import contextlib
import copy
import ctypes
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tyro.constructors import PrimitiveConstructorSpec

from envs import evaluate, format_table, make_vec

SCRIPT = Path(__file__).stem
FOLDER = Path(__file__).resolve().parent
PACKAGES = ("torch", "numpy", "gymnasium", "mujoco", "metaworld")
LOG_STD_MIN = -20
LOG_STD_MAX = 2
CACHE_ROWS = 1024  # rows of a batch whose activations fit in a CPU's cache, roughly
AGREEMENT_STATES = 128  # per task, for switch_agreement


def parse_steps(words: list[str]) -> int:
    """A whole number from the command line, which may be written 40_000 or 1e6."""
    steps = float(words[0])
    if not steps.is_integer():
        raise ValueError(f"{words[0]} is not a whole number")
    return int(steps)


Steps = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="STEPS",
        instance_from_str=parse_steps,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]


@dataclass
class Args:
    """All step counts are environment steps, summed over tasks."""

    # Run
    env_id: str = "PointReach-v0"
    """a name in envs.ENVIRONMENTS, MetaWorld:TASK,TASK,... or your own package.module:function"""
    seed: int = 1
    """seed of everything random"""
    cuda: bool = True
    """train on the GPU if there is one"""
    num_threads: int = 1
    """CPU threads of PyTorch; more than one pays for large batches only"""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """torch.set_float32_matmul_precision: less is faster on GPUs and some CPUs, but rounds"""
    compile: bool = False
    """torch.compile the update: half a minute at the start, and little gain on a CPU"""
    vectorization: Literal["sync", "async"] = "sync"
    """step the tasks in this process, or each in a process of its own"""
    run_dir: str | None = None
    """folder of the run; default runs/{env_id}__{script}[-no-qmp]__{seed}__{time}"""
    resume: str | None = None
    """folder of a run to continue from its last checkpoint, with its arguments"""
    checkpoint_frequency: Steps | None = None
    """steps between checkpoints; default: a tenth of the training, at most 100,000"""
    eval_frequency: Steps | None = None
    """steps between evaluations; default: a tenth of the training, at most 100,000"""
    eval_episodes: int = 5
    """episodes per task in an evaluation, by mean actions"""
    eval_mixture: bool = False
    """evaluate not only the tasks' own policies, but their mixtures too"""
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

    # SAC
    learning_starts: Steps = 2_000
    """until this step actions are uniformly random, and nothing is trained"""
    buffer_size: Steps = 1_000_000
    """replay transitions per task"""
    batch_size: int = 32
    """transitions per task in an update"""
    gamma: float = 0.99
    """discount factor"""
    tau: float = 0.005
    """target smoothing coefficient"""
    policy_lr: float = 3e-4
    """learning rate of the policies"""
    q_lr: float = 3e-4
    """learning rate of the critics and of alpha"""
    train_frequency: int = 1
    """iterations (one step in every task) between update phases"""
    gradient_steps: int = 1
    """updates of all tasks in each update phase"""
    alpha: float = 1.0
    """entropy temperature: its first value, or with --no-autotune its only one"""
    autotune: bool = True
    """tune each task's alpha to the target entropy -A"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """units of each hidden layer"""
    kl_coef: float = 0.01
    """beta, the weight of the KL penalty that pulls policies together; 0 is No-Sharing"""
    distill_period: Steps = 0
    """steps between distillations of all policies into a central one; 0: never"""
    distill_steps: int = 100
    """gradient steps of a distillation"""

    # QMP
    qmp: bool = True
    """act with the Q-switch mixture; --no-qmp is the base method alone"""
    switch_samples: int = 0
    """score K sampled actions of a policy (Eq. 2); 0: its mean action, as in the paper's runs"""
    switch_entropy: bool = False
    """add the policy's entropy to its score (Eq. 2); needs --switch-samples"""
    switch_rule: Literal["argmax", "uniform"] = "argmax"
    """which policy acts: the best one (QMP), or a random one (a control)"""
    switch_period: int = 1
    """steps of an episode for which a task keeps the policy that it chose"""
    own_policy_prob: float = 0.0
    """probability of skipping the switch and acting with the task's own policy"""

    def check(self) -> None:
        """Refuse arguments that would train nonsense without an error."""
        at_least_1 = ("total_timesteps", "eval_frequency", "checkpoint_frequency", "eval_episodes")
        at_least_1 += ("buffer_size", "batch_size", "train_frequency", "gradient_steps")
        at_least_1 += ("num_threads", "switch_period", "distill_steps")
        for name in at_least_1:
            if getattr(self, name) < 1:
                raise gym.error.Error(f"{flag(name)} must be at least 1")
        for name in ("learning_starts", "switch_samples", "distill_period"):
            if not getattr(self, name) >= 0:
                raise gym.error.Error(f"{flag(name)} must be at least 0")
        if not 0 <= self.kl_coef < math.inf:
            raise gym.error.Error("--kl-coef must be at least 0 and finite")
        for name in ("gamma", "tau", "own_policy_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise gym.error.Error(f"{flag(name)} must be between 0 and 1")
        for name in ("policy_lr", "q_lr", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise gym.error.Error(f"{flag(name)} must be above 0, and finite")
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise gym.error.Error("--hidden-sizes must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise gym.error.Error("--seed must be between 0 and 2**32 - 1")
        if self.learning_starts >= self.total_timesteps:
            raise gym.error.Error(
                f"--learning-starts {self.learning_starts:,} must be below "
                f"--total-timesteps {self.total_timesteps:,}"
            )
        if self.switch_entropy and self.switch_samples < 1:
            raise gym.error.Error("--switch-entropy needs --switch-samples of at least 1")
        for name in SWITCH_ARGUMENTS:
            if not self.qmp and getattr(self, name) != getattr(Args, name):
                raise gym.error.Error(f"{flag(name)} has no meaning with --no-qmp")


def flag(name: str) -> str:
    """The name of an argument as it is written on the command line."""
    return "--" + name.replace("_", "-")


SWITCH_ARGUMENTS = ("switch_samples", "switch_entropy", "switch_rule", "switch_period")
SWITCH_ARGUMENTS += ("own_policy_prob",)
MAY_CHANGE_ON_RESUME = {"resume", "total_timesteps", "checkpoint_frequency"}
MAY_CHANGE_ON_RESUME |= {"eval_frequency", "eval_episodes", "eval_mixture", "capture_video"}
MAY_CHANGE_ON_RESUME |= {"cuda", "num_threads", "compile", "vectorization"}
MAY_CHANGE_ON_RESUME |= {"track", "wandb_project_name", "wandb_entity"}


# ALGO LOGIC: networks. All tasks are one stack, with one matrix product for all.
class StackedLinear(nn.Module):
    """S linear layers side by side: [S, B, in] -> [S, B, out], each initialised as `nn.Linear`."""

    def __init__(self, stack: int, in_features: int, out_features: int):
        super().__init__()
        layers = [nn.Linear(in_features, out_features) for _ in range(stack)]
        weights = [layer.weight.detach().T for layer in layers]
        biases = [layer.bias.detach()[None] for layer in layers]
        self.weight = nn.Parameter(torch.stack(weights))  # [S, in, out]
        self.bias = nn.Parameter(torch.stack(biases))  # [S, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        return stacked_linear(x, self.weight, self.bias)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [S, B, in], weight [S, in, out], bias [S, 1, out] -> [S, B, out]."""
    if weight.shape[-1] == 1:  # matrix products with a single column are slow
        return (x * weight.mT).sum(-1, keepdim=True) + bias
    return torch.baddbmm(bias, x, weight)


def perceptrons(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """S perceptrons, with weights and biases of each layer: x [S, B, in] -> [S, B, out]."""
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(stacked_linear(x, weight, bias))
    return stacked_linear(x, weights[-1], biases[-1])


class StackedMLP(nn.Module):
    """S perceptrons with ReLU between layers: [S, B, sizes[0]] -> [S, B, sizes[-1]].

    A GPU runs all at once. A CPU runs a few at a time, through all layers, so that their
    activations stay in its cache.
    """

    def __init__(self, stack: int, *sizes: int):
        super().__init__()
        self.layers = nn.ModuleList()
        for in_features, out_features in itertools.pairwise(sizes):
            self.layers.append(StackedLinear(stack, in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        S, B, _ = x.shape
        weights = [layer.weight for layer in self.layers]
        biases = [layer.bias for layer in self.layers]
        group_size = S
        if x.device.type == "cpu":
            group_size = max(1, CACHE_ROWS // B)
        if group_size >= S:
            return perceptrons(x, weights, biases)

        # Split once, because the gradient of every slice would be as large as the whole weight.
        weights = [weight.split(group_size) for weight in weights]
        biases = [bias.split(group_size) for bias in biases]
        outputs = []
        for k, part in enumerate(x.split(group_size)):
            part_weights = [weight[k] for weight in weights]
            part_biases = [bias[k] for bias in biases]
            outputs.append(perceptrons(part, part_weights, part_biases))
        return torch.cat(outputs)


class Actor(nn.Module):
    """Squashed Gaussian policies of N tasks: mean and log standard deviation before tanh."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.N = N
        self.net = StackedMLP(N, O, *hidden_sizes, 2 * A)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs [N, B, O], or [1, B, O] for all policies in the same states -> two of [N, B, A]."""
        mean, log_std = self.net(obs.expand(self.N, -1, -1)).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


class Critic(nn.Module):
    """Twin critics of N tasks, as one stack of 2N."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.net = StackedMLP(2 * N, O + A, *hidden_sizes, 1)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [N, B, O], actions [N, B, A] -> Q1 and Q2 [2, N, B]."""
        x = torch.cat([obs, actions], dim=-1)  # [N, B, O + A]
        return self.net(torch.cat([x, x])).view(2, *x.shape[:2])


class Agent(nn.Module):
    """Policies, critics, target critics and temperatures of N tasks."""

    def __init__(self, N: int, O: int, A: int, args: Args):
        super().__init__()
        self.actor = Actor(N, O, A, args.hidden_sizes)
        self.qf = Critic(N, O, A, args.hidden_sizes)
        self.qf_target = copy.deepcopy(self.qf).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.full((N,), math.log(args.alpha)))
        # Leaves the random state as in qmp_sac.py, so that runs without penalty and distillation
        # equal its runs.
        with torch.random.fork_rng():
            self.center = Actor(1, O, A, args.hidden_sizes)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(mean + std * noise) and their log_prob (SAC, appendix C).

    mean, log_std, noise [..., A] -> actions [..., A], log_prob [...].
    """
    x = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    # log(1 - tanh(x)^2), in a form that stays finite
    log_prob = log_prob - 2 * (math.log(2) - x - nn.functional.softplus(-2 * x))
    return torch.tanh(x), log_prob.sum(-1)


# ALGO LOGIC: the Q-switch
@torch.no_grad()
def q_switch(
    mean: Tensor,
    log_std: Tensor,
    qf: nn.Module,
    obs: Tensor,
    alpha: Tensor | None = None,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Score every policy in every task's state by that task's critics, and choose the best.

    Paper, section 4. By default, as in its experiments, the score is that of the mean action:

        score_ij = min(Q1_i, Q2_i)(s_i, tanh mean_j(s_i))

    With noise and alpha it is Eq. 2, by K samples:

        score_ij = mean_k [ min(Q1_i, Q2_i)(s_i, a_jk) - alpha_i log pi_j(a_jk | s_i) ]

    Args:
        mean, log_std: [P, N, A], every policy's Gaussian before tanh in the state of every task.
        qf: the critics, a function of obs [N, B, O] and actions [N, B, A] -> [2, N, B].
        obs: [N, O], a state of each task.
        alpha: [N], temperatures, if the entropy counts.
        noise: [K, P, N, A], standard normal, if samples are scored.

    Returns:
        The chosen policies [N] and the scores [N, P].
    """
    if len(mean) != len(obs):
        raise ValueError(
            f"q_switch needs as many policies as tasks, not {len(mean)} and {len(obs)}"
        )
    if noise is None:
        noise = torch.zeros_like(mean)[None]  # the mean action
    actions, log_prob = squash(mean, log_std, noise)  # [K, P, N, A], [K, P, N]
    K, P, N, A = actions.shape
    actions = actions.permute(2, 1, 0, 3).reshape(N, P * K, A)
    states = obs[:, None].expand(N, P * K, -1)
    scores = qf(states, actions).amin(0).view(N, P, K)
    if alpha is not None:
        scores = scores - alpha[:, None, None] * log_prob.permute(2, 1, 0)
    scores = scores.mean(-1)  # [N, P]
    return best_policies(scores[:, None]).squeeze(1), scores


def best_policies(scores: Tensor) -> Tensor:
    """The policies with the highest scores, [N, B, P] -> [N, B]; a tie goes to the task's own."""
    own = torch.eye(len(scores), device=scores.device)[:, None]  # [N, 1, P]
    # Rounding in batched arithmetic separates scores that should be equal.
    tolerance = 1e-5 * scores.abs().amax(-1, keepdim=True).clamp(min=1)  # [N, B, 1]
    return (scores + tolerance * own).argmax(-1)


@torch.no_grad()
def switch_agreement(agent: Agent, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Does the switch know, or guess? Each twin critic judges the choice of the other.

    Args:
        agent: policies and critics of N tasks.
        obs: [N, B, O], states of each task.

    Returns:
        agreement: [N], share of the states in which both critics put the same policy first; 1 / N
            if they guess independently.
        gap: [N], how much better than the own policy is the one that a critic chooses, according
            to the other critic; about 0, or below, if they guess. Blind to what both get wrong.
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
    """Acts for all tasks: by the Q-switch, or without it by each task's own policy."""

    def __init__(self, agent: Agent, args: Args, use_switch: bool, mean_actions: bool = False):
        self.agent = agent
        self.args = args
        self.use_switch = use_switch
        self.mean_actions = mean_actions
        N = agent.actor.N
        device = agent.log_alpha.device
        self.own = torch.arange(N, device=device)  # [N], task i's own policy is policy i
        self.policies = self.own  # [N], which policy acts for each task
        # [N, P], steps in which each policy acted since the last evaluation
        self.counts = torch.zeros(N, N, dtype=torch.float64, device=device)

    @torch.no_grad()
    def act(self, obs: np.ndarray, episode_lengths: np.ndarray) -> np.ndarray:
        """Actions [N, A] in the states obs [N, O], at steps episode_lengths [N] of the episodes."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.own.device)
        if self.use_switch:
            mean, log_std = self.agent.actor(obs[None])  # [P, N, A], every policy in every state
            self.policies = self.choose(mean, log_std, obs, episode_lengths)
            mean = mean[self.policies, self.own]  # [N, A]
            log_std = log_std[self.policies, self.own]
        else:
            mean, log_std = self.agent.actor(obs[:, None])  # [N, 1, A]
            mean = mean.squeeze(1)  # [N, A]
            log_std = log_std.squeeze(1)
        self.counts[self.own, self.policies] += 1
        noise = torch.zeros_like(mean) if self.mean_actions else torch.randn_like(mean)
        actions, _ = squash(mean, log_std, noise)
        return actions.cpu().numpy()

    def choose(
        self, mean: Tensor, log_std: Tensor, obs: Tensor, episode_lengths: np.ndarray
    ) -> Tensor:
        """The policies [N] that act now: chosen by the switch, or kept from the steps before.

        mean, log_std [P, N, A] and obs [N, O] as for `q_switch`; episode_lengths [N].
        """
        args = self.args
        alpha = self.agent.log_alpha.exp() if args.switch_entropy else None
        noise = None
        if args.switch_samples > 0:
            noise = torch.randn(args.switch_samples, *mean.shape, device=obs.device)
        chosen, scores = q_switch(mean, log_std, self.agent.qf, obs, alpha, noise)
        if args.switch_rule == "uniform":
            chosen = torch.multinomial(torch.ones_like(scores), 1).squeeze(1)
        if not self.mean_actions:  # evaluation never skips the switch
            skip = torch.rand(len(self.own), device=obs.device) < args.own_policy_prob
            chosen = torch.where(skip, self.own, chosen)
        may_switch = episode_lengths % args.switch_period == 0
        may_switch = torch.as_tensor(may_switch, device=obs.device)  # [N]
        return torch.where(may_switch, chosen, self.policies)

    def pop_statistics(self) -> np.ndarray:
        """Return the share of steps in which each policy acted [N, P], and reset the counts."""
        shares = self.counts / self.counts.sum(1, keepdim=True)  # NaN without steps
        self.counts.zero_()
        return shares.cpu().numpy()

    def state_dict(self) -> dict:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict) -> None:
        self.counts.copy_(state["counts"])


# ALGO LOGIC: replay, one for each task
class Batch(NamedTuple):
    obs: Tensor  # [N, B, O]
    actions: Tensor  # [N, B, A]
    rewards: Tensor  # [N, B]
    next_obs: Tensor  # [N, B, O]
    terminations: Tensor  # [N, B]


class ReplayBuffer:
    """The last `capacity` transitions of each of N tasks."""

    def __init__(self, N: int, O: int, A: int, capacity: int, device: torch.device):
        self.data = Batch(
            obs=torch.empty(capacity, N, O, device=device),
            actions=torch.empty(capacity, N, A, device=device),
            rewards=torch.empty(capacity, N, device=device),
            next_obs=torch.empty(capacity, N, O, device=device),
            terminations=torch.empty(capacity, N, device=device),
        )
        self.tasks = torch.arange(N, device=device)[:, None]  # [N, 1]
        self.capacity = capacity
        self.added = 0  # transitions of each task so far

    def add(self, obs, actions, rewards, next_obs, terminations) -> None:
        """Store a transition of each task: obs, next_obs [N, O], actions [N, A], the rest [N]."""
        i = self.added % self.capacity
        self.data.obs[i] = torch.as_tensor(obs)
        self.data.actions[i] = torch.as_tensor(actions)
        self.data.rewards[i] = torch.as_tensor(rewards)
        self.data.next_obs[i] = torch.as_tensor(next_obs)
        self.data.terminations[i] = torch.as_tensor(terminations)
        self.added += 1

    def sample(self, batch_size: int, generator: torch.Generator | None = None) -> Batch:
        """Draw B transitions of each task, with replacement: a batch [N, B, ...]."""
        size = min(self.added, self.capacity)
        shape = (len(self.tasks), batch_size)
        index = torch.randint(size, shape, device=self.tasks.device, generator=generator)
        fields = [field[index, self.tasks] for field in self.data]
        return Batch(*fields)

    def state_dict(self) -> dict:
        # By way of NumPy, because a slice of a tensor would be saved with all of the tensor.
        filled = [torch.from_numpy(field[: self.added].cpu().numpy()) for field in self.data]
        return {"added": self.added, "filled": filled}

    def load_state_dict(self, state: dict) -> None:
        self.added = state["added"]
        for field, filled in zip(self.data, state["filled"], strict=True):
            field[: len(filled)] = filled


# ALGO LOGIC: learning
def step_optimizer(optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    """Descend the sum of losses [..., N]: one Adam over the stack then equals one per task."""
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    losses.sum().backward(inputs=parameters)  # the actor's loss leaves the critics alone
    optimizer.step()


def kl_sums(mean: Tensor, log_std: Tensor) -> Tensor:
    """Sum over j of KL(pi_j || pi_i), with the gradient to pi_i alone.

    It is the KL of Gaussians, which equals that of the policies after tanh, because tanh is a
    bijection. There is no need for N^2 terms: with center as the mean of all mean_j, the mean
    over j of (mean_j - mean_i)^2 is that of (mean_j - center)^2 plus (mean_i - center)^2.

    Args:
        mean, log_std: [N, S, A], every policy's Gaussian before tanh in S states.

    Returns:
        The sums [N, S], for every i.
    """
    # Single precision loses digits where policies are close and their means are large.
    mean = mean.double()
    log_std = log_std.double()
    mean_j = mean.detach()
    log_std_j = log_std.detach()

    center = mean_j.mean(0)  # [S, A]
    spread = ((2 * log_std_j).exp() + (mean_j - center).square()).mean(0)  # [S, A]
    ratio = (spread + (mean - center).square()) * (-2 * log_std).exp()  # [N, S, A]
    kl = log_std - log_std_j.mean(0) + 0.5 * (ratio - 1)  # [N, S, A], averages over j
    return len(mean) * kl.sum(-1)


def distill(agent: Agent, optimizers: dict, rb: ReplayBuffer, args: Args) -> None:
    """Fit the central policy to all tasks' data; all policies restart from it (DnC, section 4.2).

    The likelihood is that of the actions before tanh: the term that tanh adds does not depend on
    the policy.
    """
    for _ in range(args.distill_steps):
        data = rb.sample(args.batch_size)
        mean, log_std = agent.center(data.obs.flatten(0, 1)[None])  # [1, N B, A]
        x = torch.atanh(data.actions.flatten(0, 1).clamp(-1 + 1e-6, 1 - 1e-6))
        negative_log_likelihood = log_std + 0.5 * ((x - mean) / log_std.exp()).square()
        step_optimizer(optimizers["center"], negative_log_likelihood.sum(-1).mean(-1))

    with torch.no_grad():
        centers = agent.center.parameters()
        for policy, center in zip(agent.actor.parameters(), centers, strict=True):
            policy.copy_(center.expand_as(policy))


def update(agent: Agent, optimizers: dict, data: Batch, args: Args) -> dict[str, Tensor]:
    """One SAC update of all tasks, from a batch [N, B, ...]. Returns what to log, each [N]."""
    noise = torch.randn(2, *data.actions.shape, device=data.obs.device)  # [2, N, B, A]
    alpha = agent.log_alpha.detach().exp()[:, None]  # [N, 1]

    # critics: towards r + gamma (1 - terminated) (min target-Q - alpha log pi)
    with torch.no_grad():
        next_actions, next_log_prob = squash(*agent.actor(data.next_obs), noise[0])
        min_qf_next_target = agent.qf_target(data.next_obs, next_actions).amin(0)
        next_value = min_qf_next_target - alpha * next_log_prob
        next_q_value = data.rewards + args.gamma * (1 - data.terminations) * next_value  # [N, B]
    qf_values = agent.qf(data.obs, data.actions)  # [2, N, B]
    qf_losses = (qf_values - next_q_value).square().mean(-1)  # [2, N]
    step_optimizer(optimizers["q"], qf_losses)

    # policies: minimise alpha log pi - min Q, plus beta sum_j KL(pi_j || pi_i) in all states
    actions, log_prob = squash(*agent.actor(data.obs), noise[1])
    min_qf_pi = agent.qf(data.obs, actions).amin(0)  # [N, B]
    actor_loss = (alpha * log_prob - min_qf_pi).mean(-1)  # [N]
    kl_penalty = torch.zeros_like(actor_loss)
    if args.kl_coef > 0:
        kl = kl_sums(*agent.actor(data.obs.flatten(0, 1)[None]))  # [N, N B]
        kl_penalty = args.kl_coef * kl.mean(-1).float()  # [N]
    step_optimizer(optimizers["actor"], actor_loss + kl_penalty)

    # temperatures: move the entropy towards its target
    target_entropy = -actions.shape[-1]
    alpha_loss = -agent.log_alpha * (log_prob.detach() + target_entropy).mean(-1)  # [N]
    if args.autotune:
        step_optimizer(optimizers["alpha"], alpha_loss)

    # target critics
    with torch.no_grad():
        for q, target in zip(agent.qf.parameters(), agent.qf_target.parameters(), strict=True):
            target.lerp_(q, args.tau)

    info = {
        "qf1_values": qf_values[0].mean(-1),
        "qf2_values": qf_values[1].mean(-1),
        "qf1_loss": qf_losses[0],
        "qf2_loss": qf_losses[1],
        "actor_loss": actor_loss,
        "kl_penalty": kl_penalty,
        "entropy": -log_prob.mean(-1),
        "alpha": alpha[:, 0],
        "alpha_loss": alpha_loss,
    }
    return {name: values.detach() for name, values in info.items()}


def parse_args(argv: list[str] | None) -> tuple[Args, dict | None]:
    """Parse the arguments. With --resume, load the checkpoint, whose arguments are the defaults."""
    args = tyro.cli(Args, args=argv)  # once for --resume, below with the defaults of the run
    checkpoint = None
    if args.resume:
        path = Path(args.resume, "checkpoint.pt")
        if not path.exists():
            raise gym.error.Error(f"{args.resume} has no checkpoint.pt to resume from")
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if checkpoint["script"] != SCRIPT:
            raise gym.error.Error(f"{args.resume} is a run of {checkpoint['script']}.py")
        differing = set(checkpoint["args"]).symmetric_difference(vars(args))
        if differing:
            names = ", ".join(sorted(differing))
            raise gym.error.Error(
                f"{args.resume} is of a version of {SCRIPT}.py with other {names}"
            )
        saved = Args(**checkpoint["args"])
        args = tyro.cli(Args, args=argv, default=saved)
        for name, value in vars(args).items():
            if value != getattr(saved, name) and name not in MAY_CHANGE_ON_RESUME:
                raise gym.error.Error(f"{flag(name)} of this run is {getattr(saved, name)}")
    frequency = min(math.ceil(args.total_timesteps / 10), 100_000)
    if args.eval_frequency is None:
        args.eval_frequency = frequency
    if args.checkpoint_frequency is None:
        args.checkpoint_frequency = frequency
    args.check()
    return args, checkpoint


def log(writer: SummaryWriter, group: str, tasks: tuple, values: dict, global_step: int) -> None:
    """Write values, each [N], to TensorBoard: their mean, and one for every task."""
    for name, row in values.items():
        writer.add_scalar(f"{group}/{name}", row.mean(), global_step)
        for task, value in zip(tasks, row, strict=True):
            writer.add_scalar(f"{group}/{name}/{task}", value, global_step)


def main(argv: list[str] | None = None) -> Agent:
    """Train, from the start or from a checkpoint. Returns the agent."""
    args, checkpoint = parse_args(argv)
    with contextlib.ExitStack() as cleanup:  # closes what `train` opens, after an error too
        return train(args, checkpoint, cleanup)


def train(args: Args, checkpoint: dict | None, cleanup: contextlib.ExitStack) -> Agent:
    """Run the training. What must be closed in the end is registered in `cleanup`."""
    first_step = checkpoint["global_step"] if checkpoint else 0

    method = SCRIPT if args.qmp else f"{SCRIPT}-no-qmp"
    env_name = args.env_id.replace(":", "-")[:150]  # a file's name has at most 255 bytes
    run_name = f"{env_name}__{method}__{args.seed}__{int(time.time())}"
    run_dir = Path("runs", run_name)
    if args.run_dir:
        run_dir = Path(args.run_dir)
    if args.resume:
        run_dir = Path(args.resume)
    run_dir = run_dir.absolute()
    if run_dir.exists() and not args.resume:
        raise gym.error.Error(f"{run_dir} exists; choose another --run-dir, or --resume it")

    # glibc keeps freed memory for the next update, which saves 5% of its time
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD

    # seeding
    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    torch.set_float32_matmul_precision(args.matmul_precision)
    device = torch.device("cpu")
    if args.cuda and torch.cuda.is_available():
        device = torch.device("cuda")

    # env setup
    render_mode = "rgb_array" if args.capture_video else None
    envs = make_vec(args.env_id, args.vectorization)
    cleanup.callback(envs.close)
    eval_envs = make_vec(args.env_id, args.vectorization, render_mode)
    cleanup.callback(eval_envs.close)
    if checkpoint and checkpoint["tasks"] != envs.tasks:
        names = ", ".join(checkpoint["tasks"])
        raise gym.error.Error(f"the tasks of this run are {names}")
    N = envs.num_envs
    O = envs.single_observation_space.shape[0]
    A = envs.single_action_space.shape[0]
    if first_step >= args.total_timesteps + N:
        raise gym.error.Error(
            f"--total-timesteps {args.total_timesteps:,} is below the {first_step:,} of this run"
        )

    # agent setup
    agent = Agent(N, O, A, args).to(device)
    optimizers = {
        "q": torch.optim.Adam(agent.qf.parameters(), lr=args.q_lr, fused=True),
        "actor": torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr, fused=True),
        "center": torch.optim.Adam(agent.center.parameters(), lr=args.policy_lr, fused=True),
        "alpha": torch.optim.Adam([agent.log_alpha], lr=args.q_lr, fused=True),
    }
    iterations = math.ceil(max(args.total_timesteps, first_step) / N)
    rb = ReplayBuffer(N, O, A, min(args.buffer_size, iterations), device)
    mixture = Mixture(agent, args, use_switch=args.qmp and args.own_policy_prob < 1)
    evaluated = {"own": Mixture(agent, args, use_switch=False, mean_actions=True)}
    if args.eval_mixture:
        evaluated["mixture"] = Mixture(agent, args, use_switch=True, mean_actions=True)
    update_fn = torch.compile(update) if args.compile else update

    # logging
    wandb_id = checkpoint["wandb_id"] if checkpoint else None
    if args.track:
        import wandb

        run = wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            name=run_dir.name,
            config=vars(args),
            id=wandb_id,
            resume="allow",
            sync_tensorboard=True,
        )
        cleanup.enter_context(run)
        wandb_id = run.id
    run_dir.mkdir(parents=True, exist_ok=args.resume is not None)
    command = "git describe --always --dirty"
    git = subprocess.run(command, shell=True, cwd=FOLDER, capture_output=True, text=True)
    record = {"script": SCRIPT, "git_commit": git.stdout.strip(), "args": vars(args)}
    record["tasks"] = envs.tasks
    record["versions"] = {name: version(name) for name in PACKAGES}
    record["cpu"] = torch.backends.cpu.get_cpu_capability()  # on another kind results may differ
    (run_dir / "args.json").write_text(json.dumps(record, indent=2))
    writer = cleanup.enter_context(SummaryWriter(run_dir, purge_step=first_step + 1))
    hyperparameters = [f"    {name}: {value}" for name, value in vars(args).items()]
    writer.add_text("hyperparameters", "\n".join(hyperparameters))
    csv_path = run_dir / "evaluations.csv"
    evaluations = checkpoint["evaluations"] if checkpoint else ""  # the text of evaluations.csv

    # A checkpoint has all that changes in training but the environments, which start new episodes.
    parts = {"agent": agent, "replay": rb, "mixture": mixture, **optimizers}

    def save_checkpoint(global_step: int) -> None:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"script": SCRIPT, "args": vars(args), "tasks": envs.tasks, "wandb_id": wandb_id}
        state |= {"global_step": global_step, "evaluations": evaluations}
        state |= {"torch_rng": torch.get_rng_state(), "cuda_rng": torch.cuda.get_rng_state_all()}
        # A kill leaves the old checkpoint or the new one, whole.
        torch.save(state, run_dir / "checkpoint.tmp")
        os.replace(run_dir / "checkpoint.tmp", run_dir / "checkpoint.pt")

    def save_evaluations() -> None:
        (run_dir / "evaluations.tmp").write_bytes(evaluations.encode())
        os.replace(run_dir / "evaluations.tmp", csv_path)

    if checkpoint:
        for name, part in parts.items():
            part.load_state_dict(checkpoint[name])
        torch.set_rng_state(checkpoint["torch_rng"])
        if len(checkpoint["cuda_rng"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(checkpoint["cuda_rng"])
        del checkpoint
        if not csv_path.exists() or not csv_path.read_bytes().startswith(evaluations.encode()):
            print(f"Warning: {csv_path} was changed; it is written again up to step {first_step:,}")
    else:
        save_checkpoint(0)
    save_evaluations()

    replay_size = sum(field.nbytes for field in rb.data) / 2**30
    names = ", ".join(envs.tasks)
    print(f"{args.env_id}: {names}; {device}; replay of {replay_size:.1f} GiB")
    print(f"results in {run_dir}, from step {first_step:,} on")
    # A checkpoint cuts off the episodes that have not ended.
    checkpoint_steps = args.checkpoint_frequency // N  # of each task
    known_limits = [limit for limit in envs.time_limits if limit is not None]
    longest = max(known_limits, default=0)
    if longest > checkpoint_steps:
        print(
            f"Warning: episodes have up to {longest:,} steps, but checkpoints start new ones after "
            f"{checkpoint_steps:,}; choose --checkpoint-frequency {longest * N:_} or more"
        )

    # TRAIN
    start_time = time.time()
    next_line = start_time + 60  # of progress, in a log file
    start_episodes = True
    has_ended = np.zeros(N, dtype=bool)  # an episode of each task
    check_episodes = longest <= checkpoint_steps  # else the warning above was printed
    steps = range(first_step + N, args.total_timesteps + N, N)
    progress = tqdm(
        steps,
        initial=first_step // N,
        total=first_step // N + len(steps),
        unit="step",
        unit_scale=N,
        disable=None,  # unless stderr is a terminal
    )
    for global_step in progress:
        is_last = global_step == steps[-1]
        if start_episodes:  # after a checkpoint, from a seed that a resumed run knows too
            obs, _ = envs.reset(seed=[args.seed, global_step - N, 1])

        # ALGO LOGIC: act, each task by its mixture
        if global_step <= args.learning_starts:
            actions = (2 * torch.rand(N, A) - 1).numpy()
        else:
            actions = mixture.act(obs, envs.episode_lengths)
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        rb.add(obs, actions, rewards, infos["real_next_obs"], terminations)
        obs = next_obs
        has_ended |= terminations | truncations
        for i in np.flatnonzero(terminations | truncations):
            for name in ("episodic_return", "episodic_length"):
                value = infos["episode"][name][i]
                writer.add_scalar(f"charts/{name}/{envs.tasks[i]}", value, global_step)

        # ALGO LOGIC: learn, each task from its own data
        iteration = global_step // N
        if global_step > args.learning_starts and iteration % args.train_frequency == 0:
            for _ in range(args.gradient_steps):
                info = update_fn(agent, optimizers, rb.sample(args.batch_size), args)
            # in the first update phase at or after each multiple of distill_period
            phase_steps = args.train_frequency * N
            if args.distill_period > 0 and global_step % args.distill_period < phase_steps:
                distill(agent, optimizers, rb, args)
            if iteration % (100 * args.train_frequency) == 0:
                losses = {name: values.cpu().numpy() for name, values in info.items()}
                log(writer, "losses", envs.tasks, losses, global_step)
                speed = (global_step - first_step) / (time.time() - start_time)
                writer.add_scalar("charts/SPS", speed, global_step)

        # evaluate, in the first iteration at or after each multiple of eval_frequency
        if global_step % args.eval_frequency < N or is_last:
            shares = mixture.pop_statistics()  # [N, P], of training
            generator = torch.Generator(device).manual_seed(global_step)  # for this draw alone
            states = rb.sample(AGREEMENT_STATES, generator).obs
            agreement, gap = switch_agreement(agent, states)
            agreement = agreement.cpu().numpy()  # [N]
            gap = gap.cpu().numpy()  # [N]
            switch = {"own_policy": shares.diagonal(), "agreement": agreement, "gap": gap}
            log(writer, "switch", envs.tasks, switch, global_step)
            seed = [args.seed, global_step, 2]
            for acting, actor in evaluated.items():
                video = None
                if args.capture_video:
                    video = run_dir / "videos" / f"{acting}-{global_step}.mp4"
                rows = evaluate(eval_envs, actor, args.eval_episodes, seed, video)
                group = "eval" if acting == "own" else "eval_mixture"
                log(writer, group, envs.tasks, rows[[*envs.metrics]], global_step)
                rows.insert(0, "global_step", global_step)
                rows.insert(1, "acting", acting)
                rows["agreement"] = agreement
                rows["gap"] = gap
                acted = [f"acted/{task}" for task in envs.tasks]
                rows[acted] = shares
                tqdm.write(f"step {global_step:,}, {acting}\n{format_table(rows)}")
                evaluations += rows.to_csv(header=not evaluations, index=False)
            save_evaluations()

        # checkpoint, after which environments start new episodes
        start_episodes = global_step % args.checkpoint_frequency < N or is_last
        if start_episodes:
            if not all(parameter.isfinite().all() for parameter in agent.parameters()):
                raise FloatingPointError(f"a weight is not finite at step {global_step}")
            if check_episodes and not has_ended.all() and not is_last:
                names = ", ".join(np.array(envs.tasks)[~has_ended])
                tqdm.write(
                    f"Warning: checkpoints start new episodes, and none of {names} has ended in "
                    f"{checkpoint_steps:,} steps; choose a larger --checkpoint-frequency"
                )
            check_episodes = False  # one warning is enough
            writer.flush()
            save_checkpoint(global_step)

        # in a log file, a line every minute instead of the bar
        now = time.time()
        if progress.disable and now >= next_line:
            next_line = now + 60
            left = (now - start_time) / (global_step - first_step) * (steps[-1] - global_step)
            print(f"step {global_step:,} of {steps[-1]:,}, {timedelta(seconds=round(left))} left")

    plot = os.path.relpath(FOLDER / "benchmark" / "plot.py")
    print(f"results in {run_dir}; to plot: python {plot} {run_dir}")
    return agent


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # in a log file too
    try:
        main()
    except gym.error.Error as error:  # bad input: one line instead of a traceback
        print(f"{SCRIPT}.py: error: {error}", file=sys.stderr)
        sys.exit(2)
