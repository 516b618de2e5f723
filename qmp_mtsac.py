"""QMP with multi-head SAC ("Parameter-Sharing + QMP"), in one file.

    python qmp_mtsac.py                                           # PointReach, four tasks: a few minutes on one core
    python qmp_mtsac.py --no-qmp                                  # the base method: multi-task SAC with shared trunks
    python qmp_mtsac.py --env-id MetaWorldMT10-v3 --total-timesteps 1e6 --batch-size 256 --train-frequency 10
    python qmp_mtsac.py --env-id my_package.my_module:make_envs   # your own tasks
    python qmp_mtsac.py --run-dir runs/x --resume                 # go on where the run in runs/x was stopped
    python qmp_mtsac.py --run-dir runs/x --eval-only              # measure its policies and its mixtures
    python qmp_mtsac.py --help
    python qmp_mtsac.py --pcgrad                                # with gradient surgery on the shared trunks

Q-switch Mixture of Policies (Zhang et al., ICLR 2025, arXiv 2302.00671). The policies pi_i of all tasks are heads on
one trunk, and so are their critics: one trunk for each of the twins, with a head Q_i per task. Temperatures alpha_i
and replay buffers are each task's own. While task i collects data, in state s acts

    pi_i^mix = argmax over pi' in {pi_1 .. pi_N} of  E_{a ~ pi'(.|s)} [ Q_i(s, a) ] + alpha_i H[ pi'(.|s) ]

for --switch-period steps (the paper: one), and nothing else changes: multi-task soft actor-critic trains every head on
its own task's data, the trunks on all.

Letters: N tasks, P policies (= N), B batch per task, O observation, A action, K samples per candidate policy.
"""

import contextlib
import copy
import functools
import importlib.metadata
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import secrets
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn, TextIO

import gymnasium as gym
import numpy as np
import psutil
import torch
import torch.nn.functional as F
import tyro
from gymnasium.wrappers.vector import RecordVideo
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from envs import TASKS, make_vec

LOG_STD_MIN, LOG_STD_MAX = -20, 2
TRAIN_SEED, EVAL_SEED, SWITCH_SEED = 1, 2, 3  # streams of random numbers, see `child_seed`
SCRIPT = Path(__file__).name
MAY_CHANGE = set(  # on --resume
    "total_timesteps eval_frequency eval_episodes checkpoint_frequency capture_video track wandb_project_name "
    "wandb_entity cuda num_threads compile vectorization run_dir resume eval_only".split()
)


@dataclass
class Args:
    """Arguments; every step count is environment steps summed over tasks, unless it says otherwise."""

    env_id: str = "PointReach-v0"
    """environment: a key of envs.TASKS, or package.module:function"""
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """name of this experiment"""
    seed: int = 1
    """seed of everything random"""
    torch_deterministic: bool = True
    """torch.backends.cudnn.deterministic; on CPU a run repeats exactly either way"""
    cuda: bool = True
    """train on the GPU if there is one"""
    num_threads: int = 1
    """CPU threads of PyTorch; more than one pays for large batches only"""
    compile: bool = False
    """torch.compile the update: takes half a minute at the start, and gains nothing on CPU"""
    vectorization: Literal["sync", "async"] = "sync"
    """step the tasks in this process, or in a process each"""
    run_dir: str | None = None
    """folder of the run; default runs/{env_id}__{exp_name}__{seed}__{time}"""
    checkpoint_frequency: int = 0
    """steps between checkpoints, and always one at the end; 0 means a tenth of the training"""
    resume: bool = False
    """continue the run in --run-dir, with its arguments"""
    eval_only: bool = False
    """evaluate the run in --run-dir, each task with its own policy and with its mixture"""
    track: bool = False
    """log to Weights & Biases too"""
    wandb_project_name: str = "qmp"
    """W&B project"""
    wandb_entity: str | None = None
    """W&B team or user"""
    capture_video: bool = False
    """record the first episodes of every evaluation into the run's videos/"""

    total_timesteps: int = 40_000
    """length of training"""
    learning_starts: int = 2_000
    """uniformly random actions, and no training, until then"""
    buffer_size: int = 1_000_000
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
    """loop turns (one step in every task) between trainings"""
    gradient_steps: int = 1
    """updates of all tasks at each training"""
    alpha: float = 0.2
    """entropy temperature: its first value, and with --no-autotune its only one"""
    autotune: bool = True
    """tune each task's alpha to the target entropy -A"""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """units of each hidden layer"""
    reward_scale: float = 1.0
    """factor on the rewards that are learned from"""
    pcgrad: bool = False
    """project conflicting gradients of the tasks in the shared trunks (PCGrad)"""

    qmp: bool = True
    """act with the Q-switch mixture; --no-qmp is the base method alone"""
    switch_samples: int = 1
    """K actions that score a candidate policy; 0 scores its mean action (and still acts with a sample)"""
    switch_entropy: bool = True
    """count the candidate's entropy in its score"""
    switch_rule: Literal["argmax", "softmax", "uniform"] = "argmax"
    """best candidate (QMP), or draw one by score, or draw any"""
    switch_temperature: float = 1.0
    """of --switch-rule softmax"""
    switch_period: int = 10
    """steps of an episode for which a task keeps the policy it chose; 1 is the paper's QMP"""
    own_policy_prob: float = 0.0
    """chance to skip the switch and act with the task's own policy"""

    eval_frequency: int = 0
    """steps between evaluations, and always one at the end; 0 means a tenth of the training"""
    eval_episodes: int = 5
    """episodes per task in an evaluation"""


class StackedLinear(nn.Module):
    """S linear layers side by side: [S, B, in] -> [S, B, out], each slice initialised as `torch.nn.Linear` is."""

    def __init__(self, stack: int, in_features: int, out_features: int):
        super().__init__()
        layers = [nn.Linear(in_features, out_features) for _ in range(stack)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in layers]))  # [S, in, out]
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))  # [S, 1, out]

    def forward(self, x: Tensor) -> Tensor:
        """x [S, B, in] -> [S, B, out]."""
        return torch.baddbmm(self.bias, x, self.weight)


def stacked_mlp(stack: int, sizes: tuple[int, ...]) -> nn.Sequential:
    """S perceptrons side by side, with ReLU between layers: [S, B, sizes[0]] -> [S, B, sizes[-1]]."""
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*[module for i, o in pairs for module in (StackedLinear(stack, i, o), nn.ReLU())][:-1])


class Actor(nn.Module):
    """Squashed Gaussian policies of N tasks: a trunk for all, a head for each."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.A = A
        self.trunk = nn.Sequential(stacked_mlp(1, (O, *hidden_sizes)), nn.ReLU())
        self.heads = StackedLinear(N, hidden_sizes[-1], 2 * A)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs [N, B, O] -> mean and log standard deviation before tanh, each [N, B, A]."""
        features = self.trunk(obs.reshape(1, -1, obs.shape[-1])).view(*obs.shape[:2], -1)  # [N, B, hidden]
        return self.split(self.heads(features))

    def candidates(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Every policy in a state of every task, from one pass of the trunk: obs [N, O] -> as `forward`, [P, N, A]."""
        features = self.trunk(obs.unsqueeze(0))  # [1, N, hidden]
        return self.split(self.heads(features.expand(len(obs), -1, -1)))

    def chosen(self, obs: Tensor, policies: Tensor) -> tuple[Tensor, Tensor]:
        """Policy policies[i] in the state of task i: obs [N, O], policies [N] -> mean and log std, each [N, A]."""
        features = self.trunk(obs.unsqueeze(0)).transpose(0, 1)  # [N, 1, hidden]
        outputs = torch.baddbmm(self.heads.bias[policies], features, self.heads.weight[policies]).squeeze(1)
        return self.split(outputs)

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """What heads put out [..., 2A] -> mean and log standard deviation before tanh, each [..., A]."""
        mean, log_std = outputs.chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


class Critic(nn.Module):
    """Twin critics of N tasks: two trunks for all, two heads for each."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.trunk = nn.Sequential(stacked_mlp(2, (O + A, *hidden_sizes)), nn.ReLU())
        self.heads = StackedLinear(2 * N, hidden_sizes[-1], 1)

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [N, B, O], actions [N, B, A] -> Q1 and Q2 [2, N, B]."""
        x = torch.cat([obs, actions], dim=-1)
        N, B, _ = x.shape
        features = self.trunk(x.view(1, N * B, -1).expand(2, -1, -1))  # [2, N B, hidden]
        return self.heads(features.view(2 * N, B, -1)).view(2, N, B)


def to_tensor(array: np.ndarray, module: nn.Module) -> Tensor:
    """`array` as float32 on the device of `module`."""
    return torch.as_tensor(array, dtype=torch.float32, device=next(module.parameters()).device)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Sample a = tanh(mean + std * noise) of a squashed Gaussian (SAC, appendix C).

    Takes mean, log_std [..., A] and standard normal noise [..., A] (zeros give the mean action); returns actions
    [..., A] and log_prob [...]. The correction log(1 - tanh^2 x) is written so that it stays finite at saturation.
    """
    x = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    log_prob = log_prob - 2 * (math.log(2) - x - F.softplus(-2 * x))
    return torch.tanh(x), log_prob.sum(-1)


@torch.no_grad()
def q_switch(actor, qf, alpha, obs, noise, gumbel, args: Args) -> tuple[Tensor, Tensor, Tensor]:
    """Rate every policy in every task's state by that task's critics, and choose (paper, Eq. 2).

        score_ij = mean_k [ min(Q1_i, Q2_i)(s_i, a_jk) - alpha_i log pi_j(a_jk | s_i) ],   a_jk ~ pi_j(. | s_i)

    Takes temperatures alpha [N], a state of each task obs [N, O], standard normal noise [P, N, max(K, 1), A] that makes
    the candidates' actions, and standard Gumbel noise gumbel [N, P] that makes the draws of the rules softmax and
    uniform. Returns the chosen policies [N], the first sampled action of every candidate [N, P, A], the scores [N, P].
    """
    N, O = obs.shape
    mean, log_std = (x.unsqueeze(2) for x in actor.candidates(obs))  # [P, N, 1, A]
    actions, log_prob = squash(mean, log_std, noise)  # [P, N, K, A], [P, N, K]
    first_actions = actions[:, :, 0].transpose(0, 1)  # [N, P, A]
    if args.switch_samples == 0:
        actions, log_prob = squash(mean, log_std, torch.zeros_like(noise))
    K, A = actions.shape[2:]
    actions = actions.transpose(0, 1).reshape(N, N * K, A)
    scores = qf(obs.unsqueeze(1).expand(N, N * K, O), actions).amin(0).view(N, N, K)  # [N, P, K]
    if args.switch_entropy:
        scores = scores - alpha[:, None, None] * log_prob.transpose(0, 1)
    scores = scores.mean(-1)  # [N, P]
    rules = {"argmax": scores, "softmax": scores / args.switch_temperature + gumbel, "uniform": gumbel}
    key = rules[args.switch_rule]  # [N, P], the highest is chosen
    # A tie, up to rounding (1e-5, relative above 1), goes to the task's own policy, then to the lowest index.
    best = key.amax(1, keepdim=True)
    ties = key >= best - 1e-5 * best.abs().clamp(min=1)  # [N, P]
    policies = torch.where(ties.diagonal(), torch.arange(N, device=obs.device), ties.int().argmax(1))
    return policies, first_actions, scores


@torch.no_grad()
def select_actions(actor, qf, log_alpha, obs, policies, due, args: Args, generator) -> tuple[Tensor, Tensor]:
    """Actions [N, A] for obs [N, O], and the policies [N] that gave them.

    `policies` [N] acted last; tasks that are `due` [N] choose anew. The switch draws from its own `generator`; turns
    without it draw from PyTorch's, as the base method does.
    """
    N = len(obs)
    own = torch.arange(N)
    keep_own = torch.rand(N, generator=generator) < (args.own_policy_prob if args.qmp else 1.0)
    policies = torch.where(due & keep_own, own, policies)
    switching = due & ~keep_own
    if switching.any():
        noise = torch.randn(N, N, max(args.switch_samples, 1), actor.A, generator=generator).to(obs.device)
        gumbel = -torch.empty(N, N).exponential_(generator=generator).log().to(obs.device)
        chosen, actions, _ = q_switch(actor, qf, log_alpha.exp(), obs, noise, gumbel, args)
        policies = torch.where(switching, chosen.cpu(), policies)
        return actions[own, policies], policies
    mean, log_std = actor.chosen(obs, policies)  # [N, A]
    return squash(mean, log_std, torch.randn_like(mean))[0], policies


# Transitions of every task: obs, next_obs [N, B, O], actions [N, B, A], rewards, terminations [N, B].
Batch = namedtuple("Batch", ["obs", "actions", "rewards", "next_obs", "terminations"])


class ReplayBuffer:
    """The last `capacity` transitions of each of N tasks, on the device that trains."""

    def __init__(self, N: int, capacity: int, O: int, A: int, device: torch.device):
        shapes = Batch(obs=(O,), actions=(A,), rewards=(), next_obs=(O,), terminations=())
        self.data = Batch(*(torch.empty(capacity, N, *shape, device=device) for shape in shapes))
        self.tasks = torch.arange(N, device=device).unsqueeze(1)  # [N, 1]
        self.capacity, self.pos, self.size = capacity, 0, 0

    def add(self, *transition: np.ndarray) -> None:
        """Store one transition of every task; the arrays [N, ...] come in the order of `Batch`."""
        for field, value in zip(self.data, transition, strict=True):
            field[self.pos] = torch.as_tensor(value, dtype=torch.float32)
        self.pos = (self.pos + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, batch_size: int) -> Batch:
        """Draw B transitions of each task, with replacement."""
        index = torch.randint(self.size, (len(self.tasks), batch_size), device=self.tasks.device)  # [N, B]
        return Batch(*(field[index, self.tasks] for field in self.data))

    def state_dict(self) -> dict:
        """The filled part, on CPU without a copy. (A slice in PyTorch would be saved with all of its storage.)"""
        filled = {
            name: torch.from_numpy(field[: self.size].cpu().numpy()) for name, field in self.data._asdict().items()
        }
        return {"pos": self.pos, "size": self.size, **filled}

    def load_state_dict(self, state: dict) -> None:
        """Put back what `state_dict` gave; the capacity may have grown."""
        self.size = state["size"]
        self.pos = state["pos"] if self.size == self.capacity else self.size
        for name, field in self.data._asdict().items():
            field[: self.size] = state[name]


def project_conflicts(gradients: Tensor) -> Tensor:
    """PCGrad (Yu et al., 2020, Algorithm 1), of S networks: gradients [S, N, D] of N tasks -> their sum [S, D].

    From the gradient of every task is removed, in random order of the other tasks, what points against theirs.
    """
    S, N, _ = gradients.shape
    gram = gradients @ gradients.mT  # [S, N, N]
    squares = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-30)  # [S, N]
    # The projected gradient of task i is always a combination of all: sum over k of parts[i, k] gradients[k].
    parts = torch.eye(N).to(gradients).repeat(S, 1, 1)  # [S, N, N]
    for j in torch.rand(S, N, N, device=gradients.device).argsort(-1).unbind(-1):  # [S, N], the next other task of each
        dots = (parts * gram.gather(1, j.unsqueeze(-1).expand(S, N, N))).sum(-1)  # [S, N]
        conflicts = (dots < 0) & (j != torch.arange(N, device=j.device))
        parts.scatter_add_(2, j.unsqueeze(-1), -(conflicts * dots / squares.gather(1, j)).unsqueeze(-1))
    return (parts.sum(1, keepdim=True) @ gradients).squeeze(1)


def step_optimizer(optimizer: Adam, losses: Tensor, shared: Sequence[Tensor] = ()) -> None:
    """Descend the sum of per-task losses [S, N]; in `shared` parameters [S, ...] by PCGrad instead of by their sum."""
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    losses.sum().backward(inputs=parameters, retain_graph=len(shared) > 0)
    if shared:
        each = torch.eye(losses.shape[-1], device=losses.device)
        gradients = torch.autograd.grad(losses.sum(0), shared, each, is_grads_batched=True)  # [N, S, ...] of each
        flat = torch.cat([gradient.flatten(2) for gradient in gradients], dim=-1).transpose(0, 1)  # [S, N, D]
        sizes = [parameter[0].numel() for parameter in shared]
        for parameter, gradient in zip(shared, project_conflicts(flat).split(sizes, dim=-1), strict=True):
            parameter.grad.copy_(gradient.view_as(parameter))
    optimizer.step()


def update_critic(
    actor, qf, qf_target, log_alpha, q_optimizer, data: Batch, noise, gamma, shared=()
) -> dict[str, Tensor]:
    """One step of all critics towards r + gamma (1 - terminated) (min target-Q - alpha log pi) (SAC, Eq. 5-6).

    noise [N, B, A] makes the next actions, `shared` parameters learn by PCGrad. Returns what to log, each [N].
    """
    with torch.no_grad():
        next_actions, next_log_prob = squash(*actor(data.next_obs), noise)
        min_qf_next_target = qf_target(data.next_obs, next_actions).amin(0) - log_alpha.exp()[:, None] * next_log_prob
        next_q_value = data.rewards + gamma * (1 - data.terminations) * min_qf_next_target  # [N, B]
    qf_values = qf(data.obs, data.actions)  # [2, N, B]
    qf_losses = (qf_values - next_q_value).square().mean(-1)  # [2, N]
    step_optimizer(q_optimizer, qf_losses, shared)
    (qf1_values, qf2_values), (qf1_loss, qf2_loss) = qf_values.detach().mean(-1), qf_losses.detach()
    return {"qf1_values": qf1_values, "qf2_values": qf2_values, "qf1_loss": qf1_loss, "qf2_loss": qf2_loss}


def update_actor(
    actor, qf, log_alpha, actor_optimizer, data: Batch, noise, shared=()
) -> tuple[dict[str, Tensor], Tensor]:
    """One step of all policies down alpha log pi - min Q (SAC, Eq. 9).

    noise [N, B, A] makes the actions, `shared` parameters learn by PCGrad. Returns what to log, each [N], and the
    actions' log_prob [N, B].
    """
    actions, log_prob = squash(*actor(data.obs), noise)
    min_qf_pi = qf(data.obs, actions).amin(0)  # [N, B]
    actor_loss = (log_alpha.detach().exp()[:, None] * log_prob - min_qf_pi).mean(-1)  # [N]
    step_optimizer(actor_optimizer, actor_loss.unsqueeze(0), shared)
    return {"actor_loss": actor_loss.detach(), "entropy": -log_prob.detach().mean(-1)}, log_prob.detach()


def update_alpha(log_alpha, a_optimizer, log_prob, target_entropy: float) -> dict[str, Tensor]:
    """One step of all temperatures towards the target entropy, from log_prob [N, B] (SAC, Eq. 18, on log alpha)."""
    alpha_loss = -log_alpha * (log_prob + target_entropy).mean(-1)  # [N]
    step_optimizer(a_optimizer, alpha_loss)
    return {"alpha_loss": alpha_loss.detach()}


@torch.no_grad()
def update_target(qf: Critic, qf_target: Critic, tau: float) -> None:
    """Move the target critics by tau towards the critics."""
    for param, target in zip(qf.parameters(), qf_target.parameters(), strict=True):
        target.lerp_(param, tau)


# All that learning changes, of every task.
Agent = namedtuple("Agent", ["actor", "qf", "qf_target", "log_alpha", "actor_optimizer", "q_optimizer", "a_optimizer"])


def make_agent(N: int, O: int, A: int, args: Args, device: torch.device) -> Agent:
    """New networks, temperatures and optimisers for N tasks."""
    actor = Actor(N, O, A, args.hidden_sizes).to(device)
    qf = Critic(N, O, A, args.hidden_sizes).to(device)
    log_alpha = torch.full((N,), math.log(args.alpha), device=device, requires_grad=True)
    actor_optimizer = Adam(actor.parameters(), lr=args.policy_lr, fused=True)
    q_optimizer = Adam(qf.parameters(), lr=args.q_lr, fused=True)
    a_optimizer = Adam([log_alpha], lr=args.q_lr, fused=True)
    return Agent(actor, qf, copy.deepcopy(qf), log_alpha, actor_optimizer, q_optimizer, a_optimizer)


def update(agent: Agent, data: Batch, args: Args) -> dict[str, Tensor]:
    """One update of everything, for all tasks at once. Returns what to log, each [N]."""
    actor, qf, qf_target, log_alpha, actor_optimizer, q_optimizer, a_optimizer = agent
    noise = torch.randn(2, *data.actions.shape, device=log_alpha.device)  # [2, N, B, A]
    qf_shared, actor_shared = ([*net.trunk.parameters()] if args.pcgrad else () for net in (qf, actor))
    info = update_critic(actor, qf, qf_target, log_alpha, q_optimizer, data, noise[0], args.gamma, qf_shared)
    actor_info, log_prob = update_actor(actor, qf, log_alpha, actor_optimizer, data, noise[1], actor_shared)
    info |= actor_info
    if args.autotune:
        info |= update_alpha(log_alpha, a_optimizer, log_prob, target_entropy=-noise.shape[-1])
    update_target(qf, qf_target, args.tau)
    return info | {"alpha": log_alpha.detach().exp()}


def child_seed(seed: int, global_step: int, stream: int) -> int:
    """A seed for one stream of random numbers (1 or more) from one step on, independent of those of the others."""
    return int(np.random.SeedSequence((seed, global_step, stream)).generate_state(1)[0])


def final_or_step(infos: dict, name: str, dones: np.ndarray) -> np.ndarray:
    """infos[name] of each task [N]; where an episode ended, of its last step and not of the reset that followed."""
    return np.where(dones, infos.get("final_info", {}).get(name, 0.0), infos.get(name, 0.0)).astype(np.float64)


def evaluate(act: Callable, envs: gym.vector.VectorEnv, metrics: list[str], episodes: int, seed: int) -> np.ndarray:
    """Run `episodes` episodes of every task with the actions [N, A] of act(obs [N, O], episodic_length [N]).

    Returns means over episodes [N, 2 + M]: success, return, length, further metrics. Of success and the metrics the
    highest in the episode counts (for 0-or-1 metrics: whether any step had it, as in Meta-World).
    """
    obs, _ = envs.reset(seed=seed)
    start = [-np.inf, 0.0, 0.0] + [-np.inf] * (len(metrics) - 1)
    highest = [0, *range(3, len(start))]  # columns
    episode = np.tile(start, (envs.num_envs, 1))  # [N, 2 + M]
    finished = [[] for _ in range(envs.num_envs)]
    while min(map(len, finished)) < episodes:
        obs, rewards, terminations, truncations, infos = envs.step(act(obs, episode[:, 2]).cpu().numpy())
        dones = terminations | truncations
        episode[:, 1] += rewards
        episode[:, 2] += 1
        values = np.stack([final_or_step(infos, name, dones) for name in metrics], axis=1)  # [N, M]
        episode[:, highest] = np.maximum(episode[:, highest], values)
        for i in np.flatnonzero(dones):
            finished[i].append(episode[i].copy())
        episode[dones] = start
    return np.stack([np.mean(rows[:episodes], axis=0) for rows in finished])


def film(envs: gym.vector.VectorEnv, args: Args, name: str) -> gym.vector.VectorEnv:
    """`envs`, with their first episodes recorded into the run's videos/ if the arguments say so."""
    if not args.capture_video:
        return envs
    return RecordVideo(envs, f"{args.run_dir}/videos", episode_trigger=lambda e: e == 0, name_prefix=name)


class Mixture:
    """Acts for every task with its Q-switch mixture, and counts who acted for whom."""

    def __init__(self, agent: Agent, args: Args, generator: torch.Generator):
        self.agent, self.args, self.generator = agent, args, generator
        self.own = self.policies = torch.arange(len(agent.log_alpha))  # [N]
        self.counts = torch.zeros(len(self.own), len(self.own), dtype=torch.float64)  # [N, P]

    def __call__(self, obs: np.ndarray, episodic_length: np.ndarray) -> Tensor:
        """obs [N, O] in steps episodic_length [N] of their episodes -> actions [N, A]."""
        actor, qf, _, log_alpha, *_ = self.agent
        due = torch.as_tensor(episodic_length % self.args.switch_period == 0)
        obs = to_tensor(obs, actor)
        actions, self.policies = select_actions(
            actor, qf, log_alpha, obs, self.policies, due, self.args, self.generator
        )
        self.counts[self.own, self.policies] += 1
        return actions

    def shares(self) -> np.ndarray:
        """The share of steps in which each policy acted for each task [N, P] since the last call; NaN of no steps."""
        shares = self.counts / self.counts.sum(1, keepdim=True)
        self.counts.zero_()
        return shares.numpy()


@torch.no_grad()
def own_policies(actor: Actor, obs: np.ndarray, *_) -> Tensor:
    """Each task's own deterministic policy: obs [N, O] -> actions [N, A]."""
    mean, _ = actor(to_tensor(obs, actor).unsqueeze(1))  # [N, 1, A]
    return torch.tanh(mean).squeeze(1)


def result_table(global_step: int, tasks: list[str], evaluation: np.ndarray, mixture: np.ndarray) -> str:
    """An evaluation [N, 2 + M] and the mixture [N, P] for people: a row per task, then the mean."""
    own = mixture.diagonal()
    rows = [*zip(tasks, evaluation[:, 0], evaluation[:, 1], own, strict=True)]
    rows.append(("mean", evaluation[:, 0].mean(), evaluation[:, 1].mean(), own.mean()))
    width = max(len(row[0]) for row in rows)
    head = f"{'task':{width}}  success    return  own policy   (step {global_step:,})"
    return "\n".join([head, *(f"{name:{width}}  {s:7.2f}  {r:8.1f}  {p:10.2f}" for name, s, r, p in rows)])


def replace_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `path` by what `write(file)` writes: whatever happens meanwhile, it is whole, the old one or the new."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def columns(metrics: list[str]) -> list[str]:
    """Names of the 2 + M numbers of an evaluation."""
    return ["success_rate", "episodic_return", "episodic_length", *metrics[1:]]


def open_csv(path: Path, header: list[str], global_step: int) -> TextIO:
    """A CSV file to append whole lines to; its rows of later steps, lost when the run was stopped, are dropped."""
    lines = path.read_text().splitlines(keepends=True)[1:] if path.exists() else []
    lines = [line for line in lines if line.endswith("\n") and int(line.split(",")[0]) <= global_step]
    replace_file(path, lambda file: file.write("".join([",".join(header) + "\n", *lines]).encode()))
    return open(path, "a", buffering=1)


def open_run(args: Args, tasks: list[str], metrics: list[str], global_step: int) -> tuple[Path, TextIO, TextIO]:
    """Write args.json into the folder of the run. Returns the folder, evaluations.csv and mixture.csv, both open."""
    run_dir = Path(args.run_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=args.resume)
    except OSError as error:
        fail(f"cannot make the folder {run_dir}: {error.strerror}")
    describe = "git describe --always --abbrev=40 --dirty --exclude '*'"  # the commit, marked if files have changed
    git = subprocess.run(describe, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    packages = ("torch", "numpy", "gymnasium", "mujoco", "metaworld", "gymnasium-robotics")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = sys.version.split()[0]
    record = {"args": asdict(args), "tasks": tasks, "versions": versions, "git_commit": git.stdout.strip() or None}
    replace_file(run_dir / "args.json", lambda file: file.write((json.dumps(record, indent=2) + "\n").encode()))
    evaluations = open_csv(run_dir / "evaluations.csv", ["global_step", "task", *columns(metrics)], global_step)
    mixtures = open_csv(run_dir / "mixture.csv", ["global_step", "task", "policy", "probability"], global_step)
    return run_dir, evaluations, mixtures


def log_evaluation(global_step, tasks, metrics, evaluation, mixture, evaluations, mixtures, writer) -> None:
    """Append an evaluation [N, 2 + M] and a mixture [N, P] (NaN before any) to the CSV files and to TensorBoard."""
    for task, row in zip(tasks, evaluation.tolist(), strict=True):
        print(global_step, task, *row, sep=",", file=evaluations)
        for name, value in zip(columns(metrics), row, strict=True):
            writer.add_scalar(f"eval/{name}/{task}", value, global_step)
    writer.add_scalar("eval/success_rate", evaluation[:, 0].mean(), global_step)
    for (i, j), probability in np.ndenumerate(mixture):
        if not np.isnan(probability):
            print(global_step, tasks[i], tasks[j], probability, sep=",", file=mixtures)
            writer.add_scalar(f"switch/{tasks[i]}/{tasks[j]}", probability, global_step)


def log_losses(global_step: int, tasks: list[str], info: dict[str, Tensor], writer: SummaryWriter) -> None:
    """Write the numbers of an update, each [N], to TensorBoard: the mean, and every task's."""
    for name, values in zip(info, torch.stack([*info.values()]).cpu().numpy(), strict=True):
        check_finite(name, values, tasks, global_step)
        writer.add_scalar(f"losses/{name}", values.mean(), global_step)
        for task, value in zip(tasks, values, strict=True):
            writer.add_scalar(f"losses/{name}/{task}", value, global_step)


def check_finite(name: str, values: np.ndarray, tasks: list[str], global_step: int) -> None:
    """Stop the run if the values [N, ...] of some task are NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        task = tasks[np.argmin(finite.reshape(len(tasks), -1).all(1))]
        raise FloatingPointError(f"a non-finite {name} in task {task} at step {global_step:,}")


def pack(agent: Agent, rb: ReplayBuffer, mixture: Mixture) -> dict:
    """Everything that changes in training as tensors and plain values, for `unpack` to put back."""
    parts = {k: v.detach() if isinstance(v, Tensor) else v.state_dict() for k, v in agent._asdict().items()}
    rng = [torch.get_rng_state(), mixture.generator.get_state(), *torch.cuda.get_rng_state_all()]
    return {"agent": parts, "replay": rb.state_dict(), "counts": mixture.counts, "rng": rng}


@torch.no_grad()
def unpack(state: dict, agent: Agent, rb: ReplayBuffer | None, mixture: Mixture) -> None:
    """Put back what `pack` gave, replay only if there is an `rb` for it."""
    for name, part in agent._asdict().items():
        put_back = part.copy_ if isinstance(part, Tensor) else part.load_state_dict
        put_back(state["agent"][name])
    if rb:
        rb.load_state_dict(state["replay"])
    mixture.counts.copy_(state["counts"])
    cpu, switch, *cuda = state["rng"]
    torch.set_rng_state(cpu)
    mixture.generator.set_state(switch)
    if len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def read_checkpoint(args: Args) -> dict:
    """The checkpoint in args.run_dir, its tensors still on disk; ends the program if it is none of this script's."""
    path = Path(args.run_dir, "checkpoint.pt")
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        script = state["script"]
        if script == SCRIPT:
            Args(**state["args"])
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}; --resume and --eval-only need the folder of a run in --run-dir")
    except (RuntimeError, ValueError, LookupError, TypeError, EOFError, pickle.UnpicklingError):
        fail(f"cannot read {path}: it is cut off, or not a checkpoint of this version of {SCRIPT}")
    if script != SCRIPT:
        fail(f"{path} was written by {script}, not by {SCRIPT}")
    return state


def report(message: object) -> None:
    """One line on stderr, whatever the message."""
    print(f"{SCRIPT}: {' '.join(str(message).split())}", file=sys.stderr)


def fail(message: object) -> NoReturn:
    """End the program for bad input: one line on stderr, exit code 2."""
    report(f"error: {message}")
    raise SystemExit(2)


def open_envs(args: Args) -> gym.vector.VectorEnv:
    """The environments of `args`; ends the program if they cannot be made."""
    render_mode = "rgb_array" if args.capture_video else None
    gym.logger.min_level = gym.logger.ERROR  # RecordVideo's warnings say nothing new
    try:
        envs = make_vec(args.env_id, args.seed, args.vectorization, render_mode)
    except ValueError as error:
        fail(error)
    if render_mode and envs.render_mode != render_mode:
        fail(f"--capture-video: {args.env_id} cannot render an rgb_array")
    return envs


def open_replay(N: int, O: int, A: int, args: Args, device: torch.device) -> ReplayBuffer:
    """An empty replay buffer; ends the program if it would not fit into memory when it is full."""
    capacity = min(args.buffer_size, -(-args.total_timesteps // N))
    needed = 4 * N * capacity * (2 * O + A + 2)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        fail(
            f"replay of {N} x {capacity:,} transitions takes {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free; "
            "choose a smaller --buffer-size"
        )
    return ReplayBuffer(N, capacity, O, A, device)


def start(args: Args, state: dict | None) -> tuple:
    """What training and --eval-only begin with.

    Returns the environments, (N, O, A), the names of tasks and metrics, a new agent, the switch's generator.
    """
    random.seed(args.seed)
    np.random.seed(args.seed % 2**32)
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    generator = torch.Generator().manual_seed(child_seed(args.seed, 0, SWITCH_SEED))
    envs = open_envs(args)
    shape = envs.num_envs, envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    if state and state["shape"] != shape:
        fail(f"{args.env_id} has changed: its (tasks, observation, action) were {state['shape']}, now they are {shape}")
    tasks = list(TASKS.get(args.env_id, (f"task-{i}" for i in range(envs.num_envs))))
    metrics = ["success", *envs.metadata.get("metrics", ())]
    return envs, shape, tasks, metrics, make_agent(*shape, args, device), generator


def train(args: Args, signals: Sequence[int] = ()) -> Agent:
    """Run the training that `args` describe, from its beginning or with args.resume from its last checkpoint.

    Once `signals` is not empty it ends its turn, writes a checkpoint and stops. Returns what was learned.
    """
    state = read_checkpoint(args) if args.resume else None
    envs, shape, tasks, metrics, agent, generator = start(args, state)
    eval_envs = open_envs(args)
    N, O, A = shape
    mixture, rb = Mixture(agent, args, generator), open_replay(N, O, A, args, agent.log_alpha.device)
    global_step, wandb_id = (state["global_step"], state["wandb_id"]) if state else (0, secrets.token_hex(4))
    if state:
        unpack(state, agent, rb, mixture)
        if not state["scheduled"]:
            print(f"resumed at step {global_step:,}, between checkpoints: valid, but not the run without interruption")
    if args.track:
        import wandb

        config = {"project": args.wandb_project_name, "entity": args.wandb_entity, "config": asdict(args)}
        try:
            wandb.init(**config, name=Path(args.run_dir).name, id=wandb_id, resume="allow", sync_tensorboard=True)
        except wandb.errors.Error as error:
            fail(f"--track: {error}")
    run_dir, evaluations, mixtures = open_run(args, tasks, metrics, global_step)
    writer = SummaryWriter(run_dir, purge_step=global_step + 1)

    def save(scheduled: bool) -> None:
        """Replace checkpoint.pt, once all that it follows from is on disk."""
        if not all(p.isfinite().all() for net in (agent.actor, agent.qf) for p in net.parameters()):
            raise FloatingPointError(f"a weight is not finite at step {global_step:,}")
        writer.flush()
        for file in (evaluations, mixtures):
            os.fsync(file.fileno())
        run = {"script": SCRIPT, "args": asdict(replace(args, resume=False)), "shape": shape, "wandb_id": wandb_id}
        run |= {"global_step": global_step, "scheduled": scheduled, **pack(agent, rb, mixture)}
        replace_file(run_dir / "checkpoint.pt", functools.partial(torch.save, run))

    if not state:
        save(scheduled=True)
    del state  # and the file that it maps into memory
    eval_frequency = args.eval_frequency or max(args.total_timesteps // 10, 1)
    checkpoint_frequency = args.checkpoint_frequency or max(args.total_timesteps // 10, 1)
    first_step, start_time, stopping, new_episodes = global_step, time.time(), False, True
    learn = torch.compile(update) if args.compile else update
    progress = tqdm(total=args.total_timesteps, initial=global_step, unit="step", disable=None)
    while global_step < args.total_timesteps and not stopping:
        if new_episodes:  # at the start and after every checkpoint, from what a resumed run knows too
            seed = child_seed(args.seed, global_step, TRAIN_SEED)
            random.seed(seed)  # for environments of others that draw from these
            np.random.seed(seed)
            obs, _ = envs.reset(seed=seed)
            episodic_return, episodic_length = np.zeros(N), np.zeros(N, dtype=np.int64)
        global_step += N
        if global_step <= args.learning_starts:
            actions = 2 * torch.rand(N, A) - 1
        else:
            actions = mixture(obs, episodic_length)
        actions = actions.cpu().numpy()
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)

        # After an episode's end next_obs is the start of the next one; what is learned from is its true last one.
        dones = terminations | truncations
        real_next_obs = next_obs.copy()
        if dones.any():
            real_next_obs[dones] = np.stack(infos["final_obs"][dones])
        numbers = (("observation", obs), ("action", actions), ("observation", real_next_obs), ("reward", rewards))
        for name, values in numbers:
            check_finite(name, values, tasks, global_step)
        rb.add(obs, actions, rewards * args.reward_scale, real_next_obs, terminations)
        obs = next_obs

        episodic_return += rewards
        episodic_length += 1
        for i in np.flatnonzero(dones):
            writer.add_scalar(f"charts/episodic_return/{tasks[i]}", episodic_return[i], global_step)
            writer.add_scalar(f"charts/episodic_length/{tasks[i]}", episodic_length[i], global_step)
        episodic_return[dones], episodic_length[dones] = 0, 0

        turn = global_step // N
        if global_step > args.learning_starts and turn % args.train_frequency == 0:
            for _ in range(args.gradient_steps):
                info = learn(agent, rb.sample(args.batch_size), args)
            if turn // args.train_frequency % 100 == 0:
                log_losses(global_step, tasks, info, writer)
                speed = (global_step - first_step) / (time.time() - start_time)
                writer.add_scalar("charts/SPS", speed, global_step)

        progress.update(N)
        finished, stopping = global_step >= args.total_timesteps, bool(signals)
        if global_step % eval_frequency < N or finished:
            view, seed = film(eval_envs, args, f"step-{global_step}"), child_seed(args.seed, global_step, EVAL_SEED)
            evaluation = evaluate(functools.partial(own_policies, agent.actor), view, metrics, args.eval_episodes, seed)
            shares = mixture.shares()
            log_evaluation(global_step, tasks, metrics, evaluation, shares, evaluations, mixtures, writer)
            progress.set_postfix(success=f"{evaluation[:, 0].mean():.2f}")
            table = result_table(global_step, tasks, evaluation, shares)
            if not progress.disable and not finished:
                tqdm.write(table)
        scheduled = global_step % checkpoint_frequency < N or finished
        new_episodes = scheduled or stopping
        if new_episodes:
            save(scheduled)
    for resource in (progress, writer, evaluations, mixtures, envs, eval_envs):
        resource.close()
    if args.track:
        wandb.finish()
    if finished:
        print(f"{table}\nresults in {run_dir}")
    else:
        print(f"stopped at step {global_step:,}; to go on: python {SCRIPT} --run-dir {run_dir} --resume")
    return agent


def evaluate_run(args: Args) -> None:
    """--eval-only: evaluate each task of a run's last checkpoint with its own policy, then with its mixture.

    Prints both tables and writes final_evaluation.csv, and videos if asked for; the run itself stays as it is.
    """
    state = read_checkpoint(args)
    envs, _, tasks, metrics, agent, generator = start(args, state)
    mixture = Mixture(agent, replace(args, qmp=True), generator)
    unpack(state, agent, None, mixture)
    mixture.shares()  # those of the training do not count
    step, lines = state["global_step"], [["global_step", "acting", "task", *columns(metrics)]]
    for name, act in (("own", functools.partial(own_policies, agent.actor)), ("mixture", mixture)):
        view = film(envs, args, f"final-{name}")
        seed = child_seed(args.seed, step, EVAL_SEED)
        evaluation = evaluate(act, view, metrics, args.eval_episodes, seed)
        lines += [[step, name, task, *row] for task, row in zip(tasks, evaluation.tolist(), strict=True)]
        shares = np.eye(len(tasks)) if name == "own" else mixture.shares()
        print("own policies, without noise:" if name == "own" else "mixtures, sampled as while collecting data:")
        print(result_table(step, tasks, evaluation, shares))
    path = Path(args.run_dir) / "final_evaluation.csv"
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    replace_file(path, lambda file: file.write(text.encode()))
    envs.close()
    print(f"results in {path}")


def check_args(args: Args) -> None:
    """End the program for values out of range and for flags that contradict each other."""
    counts = "total_timesteps buffer_size batch_size train_frequency gradient_steps switch_period eval_episodes"
    from_0 = "seed learning_starts switch_samples eval_frequency checkpoint_frequency"
    limits = (
        ("from 1 to 2**63 - 1", lambda x: 1 <= x < 2**63, counts),
        ("from 1 to 1024", lambda x: 1 <= x <= 1024, "num_threads"),
        ("from 0 to 2**63 - 1", lambda x: 0 <= x < 2**63, from_0),
        ("above 0", lambda x: 0 < x < math.inf, "policy_lr q_lr alpha switch_temperature reward_scale"),
        ("from 0 to 1", lambda x: 0 <= x <= 1, "gamma tau own_policy_prob"),
        ("one or more numbers above 0", lambda x: x and min(x) > 0, "hidden_sizes"),
    )
    for allowed, test, names in limits:
        for name in names.split():
            if not test(getattr(args, name)):
                fail(f"{flag(name)} must be {allowed}, not {getattr(args, name)}")
    if args.learning_starts >= args.total_timesteps:
        fail(f"--learning-starts {args.learning_starts} must be below --total-timesteps {args.total_timesteps}")


def flag(name: str) -> str:
    """The command line's name of a field of Args."""
    return f"--{name.replace('_', '-')}"


def parse_args(argv: list[str], default: Args) -> Args:
    """The command line's arguments, whole numbers also as 1e6; ends the program with one line if there is a mistake."""
    words = [re.sub(r"(^|=)(\d+(\.\d+)?[eE]\+?\d{1,2})$", lambda m: f"{m[1]}{Decimal(m[2]):f}", word) for word in argv]
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            args = tyro.cli(Args, args=words, default=default)
    except SystemExit as stop:
        if stop.code:
            # Without the box that tyro draws around it, and its title.
            body = re.sub(r"[╭╮╰╯│─]+|-{3,}", " ", box.getvalue().partition("\n")[2])
            fail(body.partition("For full helptext")[0])
        raise
    if args.resume and args.eval_only:
        fail("--resume and --eval-only exclude each other")
    if (args.resume or args.eval_only) and args.run_dir is None:
        fail("--resume and --eval-only need --run-dir, the folder of the run")
    return args


def main(argv: list[str]) -> None:
    """Train, continue or evaluate, as the flags of the command line say."""
    args = parse_args(argv, Args())
    if args.resume or args.eval_only:
        state = read_checkpoint(args)
        saved, step = Args(**state["args"]), state["global_step"]
        del state
        args = parse_args(argv, saved)  # what the command line does not say is as it was
        for name in asdict(args).keys() - MAY_CHANGE:
            if getattr(args, name) != getattr(saved, name):
                fail(f"{flag(name)} was {getattr(saved, name)} in this run and cannot become {getattr(args, name)}")
        if args.resume and step >= args.total_timesteps:
            fail(f"the run is finished, at step {step:,}; give more --total-timesteps to go on")
    else:
        args.run_dir = args.run_dir or f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}"
        if os.path.exists(args.run_dir):
            fail(
                f"{args.run_dir} already exists; choose another --run-dir, delete it, or continue its run with --resume"
            )
    check_args(args)
    signals, pid = [], os.getpid()

    def stop(number: int, _) -> None:
        signals.append(number)
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() == pid:  # and not in a process of --vectorization async
            report("finishing this turn and its checkpoint; a second signal ends the program at once")

    def leave(number: int, _) -> NoReturn:
        raise SystemExit(128 + number)

    handler = leave if args.eval_only else stop  # an evaluation has nothing to lose
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if args.eval_only:
            evaluate_run(args)
        else:
            train(args, signals)
    except (FloatingPointError, OSError, EOFError) as error:
        pipe = isinstance(error, EOFError | ConnectionError)
        cause = "the process at the other end of a pipe has ended, perhaps an environment's" if pipe else error
        again = "--eval-only" if args.eval_only else "--resume"
        report(f"stopped by an error: {cause}; the last checkpoint is kept: --run-dir {args.run_dir} {again}")
        raise SystemExit(1) from None
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    if signals:
        raise SystemExit(128 + signals[0])


if __name__ == "__main__":
    main(sys.argv[1:])
