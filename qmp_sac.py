"""QMP with N separate SAC agents ("No-Sharing + QMP"), in one file.

    python qmp_sac.py                                           # PointReach, four tasks: two minutes on one core
    python qmp_sac.py --no-qmp                                  # the base method alone: N separate SAC agents
    python qmp_sac.py --env-id MetaWorldMT10-v3 --total-timesteps 1e6 --batch-size 256 --train-frequency 10
    python qmp_sac.py --env-id my_package.my_module:make_envs   # your own tasks
    python qmp_sac.py --help

Q-switch Mixture of Policies (Zhang et al., ICLR 2025, arXiv 2302.00671). Each task i has its own policy pi_i, twin
critics Q_i, entropy temperature alpha_i and replay buffer. While task i collects data, in every state s acts

    pi_i^mix = argmax over pi' in {pi_1 .. pi_N} of  E_{a ~ pi'(.|s)} [ Q_i(s, a) ] + alpha_i H[ pi'(.|s) ]

and nothing else changes: every policy and critic is trained by soft actor-critic on its own task's data alone.

Letters: N tasks, P policies (= N), B batch per task, O observation, A action, K samples per candidate policy.
"""

import copy
import functools
import importlib.metadata
import itertools
import json
import math
import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NoReturn, TextIO

import gymnasium as gym
import numpy as np
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
    vectorization: Literal["sync", "async"] = "sync"
    """step the tasks in this process, or in a process each"""
    run_dir: str | None = None
    """folder of the run; default runs/{env_id}__{exp_name}__{seed}__{time}"""
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
    switch_period: int = 1
    """steps of an episode for which a task keeps the policy it chose"""
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
    """Squashed Gaussian policies of N tasks, as one stack."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.net = stacked_mlp(N, (O, *hidden_sizes, 2 * A))

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs [N, B, O] -> mean and log standard deviation before tanh, each [N, B, A]."""
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)


class Critic(nn.Module):
    """Twin critics of N tasks, as one stack of 2N."""

    def __init__(self, N: int, O: int, A: int, hidden_sizes: tuple[int, ...]):
        super().__init__()
        self.net = stacked_mlp(2 * N, (O + A, *hidden_sizes, 1))

    def forward(self, obs: Tensor, actions: Tensor) -> Tensor:
        """obs [N, B, O], actions [N, B, A] -> Q1 and Q2 [2, N, B]."""
        x = torch.cat([obs, actions], dim=-1)
        return self.net(x.repeat(2, 1, 1)).view(2, *x.shape[:2])


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
    mean, log_std = (x.unsqueeze(2) for x in actor(obs.expand(N, N, O)))  # [P, N, 1, A]
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
    # A tie, up to rounding (a relative 1e-5), goes to the task's own policy, then to the lowest index.
    best = key.amax(1, keepdim=True)
    ties = key >= best - 1e-5 * best.abs().clamp(min=1)  # [N, P]
    policies = torch.where(ties.diagonal(), torch.arange(N, device=obs.device), ties.int().argmax(1))
    return policies, first_actions, scores


@torch.no_grad()
def select_actions(actor, qf, log_alpha, obs, policies, due, args: Args, generator) -> tuple[Tensor, Tensor]:
    """Actions [N, A] for obs [N, O], and the policies [N] that gave them.

    `policies` [N] acted last; tasks that are `due` [N] choose anew. The switch draws from its own `generator`, so that
    the base method's random numbers do not depend on it.
    """
    N, O = obs.shape
    own = torch.arange(N)
    keep_own = torch.rand(N, generator=generator) < (args.own_policy_prob if args.qmp else 1.0)
    policies = torch.where(due & keep_own, own, policies)
    switching = due & ~keep_own
    if torch.equal(policies, own) and not switching.any():
        mean, log_std = actor(obs.unsqueeze(1))  # [N, 1, A]
        return squash(mean, log_std, torch.randn_like(mean))[0].squeeze(1), policies
    noise = torch.randn(N, N, max(args.switch_samples, 1), actor.net[-1].bias.shape[-1] // 2, generator=generator)
    gumbel = -torch.empty(N, N).exponential_(generator=generator).log()
    chosen, actions, _ = q_switch(actor, qf, log_alpha.exp(), obs, noise.to(obs.device), gumbel.to(obs.device), args)
    policies = torch.where(switching, chosen.cpu(), policies)
    return actions[own, policies], policies


# Transitions of every task: obs, next_obs [N, B, O], actions [N, B, A], rewards, terminations [N, B].
Batch = namedtuple("Batch", ["obs", "actions", "rewards", "next_obs", "terminations"])


class ReplayBuffer:
    """The last `capacity` transitions of each of N tasks, on the device that trains."""

    def __init__(self, N: int, capacity: int, O: int, A: int, device: torch.device):
        shapes = Batch(obs=(O,), actions=(A,), rewards=(), next_obs=(O,), terminations=())
        self.data = Batch(*(torch.empty(N, capacity, *shape, device=device) for shape in shapes))
        self.rows = torch.arange(N, device=device).unsqueeze(1)  # [N, 1]
        self.capacity, self.pos, self.size = capacity, 0, 0

    def add(self, *transition: np.ndarray) -> None:
        """Store one transition of every task; the arrays [N, ...] come in the order of `Batch`."""
        for field, value in zip(self.data, transition, strict=True):
            field[:, self.pos] = torch.as_tensor(value, dtype=torch.float32)
        self.pos = (self.pos + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, batch_size: int) -> Batch:
        """Draw B transitions of each task, with replacement."""
        index = torch.randint(self.size, (len(self.rows), batch_size), device=self.rows.device)  # [N, B]
        return Batch(*(field[self.rows, index] for field in self.data))


def step_optimizer(optimizer: Adam, losses: Tensor) -> None:
    """Descend the sum of per-task losses: one Adam over the stack then equals one Adam per task."""
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    losses.sum().backward(inputs=parameters)
    optimizer.step()


def update_critic(actor, qf, qf_target, log_alpha, q_optimizer, data: Batch, noise, gamma) -> dict[str, Tensor]:
    """One step of all critics towards r + gamma (1 - terminated) (min target-Q - alpha log pi) (SAC, Eq. 5-6).

    noise [N, B, A] makes the next actions. Returns what to log, each [N].
    """
    with torch.no_grad():
        next_actions, next_log_prob = squash(*actor(data.next_obs), noise)
        min_qf_next_target = qf_target(data.next_obs, next_actions).amin(0) - log_alpha.exp()[:, None] * next_log_prob
        next_q_value = data.rewards + gamma * (1 - data.terminations) * min_qf_next_target  # [N, B]
    qf_values = qf(data.obs, data.actions)  # [2, N, B]
    qf_losses = (qf_values - next_q_value).square().mean(-1)  # [2, N]
    step_optimizer(q_optimizer, qf_losses)
    (qf1_values, qf2_values), (qf1_loss, qf2_loss) = qf_values.detach().mean(-1), qf_losses.detach()
    return {"qf1_values": qf1_values, "qf2_values": qf2_values, "qf1_loss": qf1_loss, "qf2_loss": qf2_loss}


def update_actor(actor, qf, log_alpha, actor_optimizer, data: Batch, noise) -> tuple[dict[str, Tensor], Tensor]:
    """One step of all policies down alpha log pi - min Q (SAC, Eq. 9).

    noise [N, B, A] makes the actions. Returns what to log, each [N], and their log_prob [N, B].
    """
    actions, log_prob = squash(*actor(data.obs), noise)
    min_qf_pi = qf(data.obs, actions).amin(0)  # [N, B]
    actor_loss = (log_alpha.detach().exp()[:, None] * log_prob - min_qf_pi).mean(-1)  # [N]
    step_optimizer(actor_optimizer, actor_loss)
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


def child_seed(seed: int, global_step: int, stream: int) -> int:
    """A seed for one stream of random numbers (1 or more) from one step on, independent of those of the others."""
    return int(np.random.SeedSequence((seed, global_step, stream)).generate_state(1)[0])


def final_or_step(infos: dict, name: str, dones: np.ndarray) -> np.ndarray:
    """infos[name] of each task [N]; where an episode ended, of its last step and not of the reset that followed."""
    return np.where(dones, infos.get("final_info", {}).get(name, 0.0), infos.get(name, 0.0)).astype(np.float64)


@torch.no_grad()
def evaluate(actor: Actor, envs: gym.vector.VectorEnv, metrics: list[str], episodes: int, seed: int) -> np.ndarray:
    """Run each task's own deterministic policy for `episodes` episodes.

    Returns means over episodes [N, 2 + M]: return, length, and the M metrics, each the highest of its episode (for
    0-or-1 metrics such as success: whether any step had it, as in Meta-World).
    """
    obs, _ = envs.reset(seed=seed)
    start = [0.0, 0.0] + [-np.inf] * len(metrics)
    episode = np.tile(start, (envs.num_envs, 1))  # [N, 2 + M]
    finished = [[] for _ in range(envs.num_envs)]
    while min(map(len, finished)) < episodes:
        mean, _ = actor(to_tensor(obs, actor).unsqueeze(1))  # [N, 1, A]
        obs, rewards, terminations, truncations, infos = envs.step(torch.tanh(mean).squeeze(1).cpu().numpy())
        dones = terminations | truncations
        episode[:, 0] += rewards
        episode[:, 1] += 1
        values = np.stack([final_or_step(infos, name, dones) for name in metrics], axis=1)  # [N, M]
        episode[:, 2:] = np.maximum(episode[:, 2:], values)
        for i in np.flatnonzero(dones):
            finished[i].append(episode[i].copy())
        episode[dones] = start
    return np.stack([np.mean(rows[:episodes], axis=0) for rows in finished])


def result_table(global_step: int, tasks: list[str], evaluation: np.ndarray, mixture: np.ndarray) -> str:
    """An evaluation [N, 2 + M] and the mixture [N, P] for people: a row per task, then the mean."""
    own = mixture.diagonal()
    rows = [*zip(tasks, evaluation[:, 2], evaluation[:, 0], own, strict=True)]
    rows.append(("mean", evaluation[:, 2].mean(), evaluation[:, 0].mean(), own.mean()))
    width = max(len(row[0]) for row in rows)
    head = f"{'task':{width}}  success    return  own policy   (step {global_step:,})"
    return "\n".join([head, *(f"{name:{width}}  {s:7.2f}  {r:8.1f}  {p:10.2f}" for name, s, r, p in rows)])


def open_run(args: Args, tasks: list[str], metrics: list[str]) -> tuple[Path, TextIO, TextIO]:
    """Make the folder of the run with args.json. Returns it, evaluations.csv and mixture.csv, open and with headers."""
    run_dir = Path(args.run_dir or f"runs/{args.env_id}__{args.exp_name}__{args.seed}__{int(time.time())}")
    if run_dir.exists():
        fail(f"{run_dir} already exists; choose another --run-dir")
    run_dir.mkdir(parents=True)
    git = subprocess.run("git rev-parse HEAD", shell=True, cwd=Path(__file__).parent, capture_output=True, text=True)
    packages = ("torch", "numpy", "gymnasium", "mujoco", "metaworld")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = sys.version.split()[0]
    record = {"args": asdict(args), "tasks": tasks, "versions": versions, "git_commit": git.stdout.strip() or None}
    (run_dir / "args.json").write_text(json.dumps(record, indent=2) + "\n")
    evaluations, mixtures = (open(run_dir / name, "w", buffering=1) for name in ("evaluations.csv", "mixture.csv"))
    print("global_step,task,success_rate,episodic_return,episodic_length", *metrics[1:], sep=",", file=evaluations)
    print("global_step,task,policy,probability", file=mixtures)
    return run_dir, evaluations, mixtures


def log_evaluation(global_step, tasks, metrics, evaluation, mixture, evaluations, mixtures, writer) -> None:
    """Append an evaluation [N, 2 + M] and a mixture [N, P] (NaN before any) to the CSV files and to TensorBoard."""
    for task, (episodic_return, length, success, *more) in zip(tasks, evaluation.tolist(), strict=True):
        print(global_step, task, success, episodic_return, length, *more, sep=",", file=evaluations)
        names = ("episodic_return", "episodic_length", "success_rate", *metrics[1:])
        for name, value in zip(names, (episodic_return, length, success, *more), strict=True):
            writer.add_scalar(f"eval/{name}/{task}", value, global_step)
    writer.add_scalar("eval/success_rate", evaluation[:, 2].mean(), global_step)
    for (i, j), probability in np.ndenumerate(mixture):
        if not np.isnan(probability):
            print(global_step, tasks[i], tasks[j], probability, sep=",", file=mixtures)
            writer.add_scalar(f"switch/{tasks[i]}/{tasks[j]}", probability, global_step)


def fail(message: object) -> NoReturn:
    """End the program for bad input: one line on stderr, exit code 2."""
    print(f"{Path(__file__).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def train(args: Args) -> tuple[Actor, Critic, Tensor]:
    """Run the whole training that `args` describe. Returns the policies, the critics and log alpha [N]."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.num_threads)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")
    switch_generator = torch.Generator().manual_seed(child_seed(args.seed, 0, SWITCH_SEED))

    render_mode = "rgb_array" if args.capture_video else None
    gym.logger.min_level = gym.logger.ERROR  # RecordVideo's warnings say nothing new
    make_envs = functools.partial(make_vec, args.env_id, args.seed, args.vectorization, render_mode)
    try:
        envs, eval_envs = make_envs(), None  # the second is made when it is first needed
    except ValueError as error:
        fail(error)
    if envs.render_mode != render_mode:
        fail(f"--capture-video: {args.env_id} cannot render an rgb_array")
    N, O, A = envs.num_envs, envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    tasks = list(TASKS.get(args.env_id, (f"task-{i}" for i in range(N))))
    metrics = ["success", *envs.metadata.get("metrics", ())]
    run_dir, evaluations, mixtures = open_run(args, tasks, metrics)
    if args.track:
        import wandb

        config = {"project": args.wandb_project_name, "entity": args.wandb_entity, "config": asdict(args)}
        wandb.init(**config, name=run_dir.name, sync_tensorboard=True)
    writer = SummaryWriter(run_dir)

    actor = Actor(N, O, A, args.hidden_sizes).to(device)
    qf = Critic(N, O, A, args.hidden_sizes).to(device)
    qf_target = copy.deepcopy(qf)
    log_alpha = torch.full((N,), math.log(args.alpha), device=device, requires_grad=True)
    actor_optimizer = Adam(actor.parameters(), lr=args.policy_lr, fused=True)
    q_optimizer = Adam(qf.parameters(), lr=args.q_lr, fused=True)
    a_optimizer = Adam([log_alpha], lr=args.q_lr, fused=True)
    rb = ReplayBuffer(N, min(args.buffer_size, -(-args.total_timesteps // N)), O, A, device)

    own, policies, counts = torch.arange(N), torch.arange(N), np.zeros((N, N))
    eval_frequency = args.eval_frequency or max(args.total_timesteps // 10, 1)
    episodic_return, episodic_length = np.zeros(N), np.zeros(N, dtype=np.int64)
    start_time = time.time()
    progress = tqdm(total=args.total_timesteps, unit="step", disable=None)
    obs, _ = envs.reset(seed=child_seed(args.seed, 0, TRAIN_SEED))
    for global_step in range(N, args.total_timesteps + N, N):
        if global_step <= args.learning_starts:
            actions = 2 * torch.rand(N, A) - 1
        else:
            due = torch.as_tensor(episodic_length % args.switch_period == 0)
            actions, policies = select_actions(
                actor, qf, log_alpha, to_tensor(obs, actor), policies, due, args, switch_generator
            )
            counts[own, policies] += 1
        actions = actions.cpu().numpy()
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)

        # After an episode's end next_obs is the start of the next one; what is learned from is its true last one.
        dones = terminations | truncations
        real_next_obs = next_obs.copy()
        if dones.any():
            real_next_obs[dones] = np.stack(infos["final_obs"][dones])
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
                data = rb.sample(args.batch_size)
                noise = torch.randn(2, N, args.batch_size, A, device=device)
                info = update_critic(actor, qf, qf_target, log_alpha, q_optimizer, data, noise[0], args.gamma)
                actor_info, log_prob = update_actor(actor, qf, log_alpha, actor_optimizer, data, noise[1])
                info |= actor_info
                if args.autotune:
                    info |= update_alpha(log_alpha, a_optimizer, log_prob, target_entropy=-A)
                update_target(qf, qf_target, args.tau)
            if turn // args.train_frequency % 100 == 0:
                info["alpha"] = log_alpha.detach().exp()
                for name, values in zip(info, torch.stack([*info.values()]).tolist(), strict=True):
                    writer.add_scalar(f"losses/{name}", np.mean(values), global_step)
                    for task, value in zip(tasks, values, strict=True):
                        writer.add_scalar(f"losses/{name}/{task}", value, global_step)
                writer.add_scalar("charts/SPS", global_step / (time.time() - start_time), global_step)

        progress.update(N)
        if global_step % eval_frequency < N or global_step >= args.total_timesteps:
            eval_envs = eval_envs or make_envs()
            video = {"video_folder": str(run_dir / "videos"), "name_prefix": f"step-{global_step}"}
            view = RecordVideo(eval_envs, **video, episode_trigger=lambda e: e == 0) if render_mode else eval_envs
            seed = child_seed(args.seed, global_step, EVAL_SEED)
            evaluation = evaluate(actor, view, metrics, args.eval_episodes, seed)
            with np.errstate(invalid="ignore"):
                mixture = counts / counts.sum(1, keepdims=True)  # NaN while actions are random
            counts[:] = 0
            log_evaluation(global_step, tasks, metrics, evaluation, mixture, evaluations, mixtures, writer)
            progress.set_postfix(success=f"{evaluation[:, 2].mean():.2f}")
            table = result_table(global_step, tasks, evaluation, mixture)
            if not progress.disable and global_step < args.total_timesteps:
                tqdm.write(table)
    for resource in (progress, writer, evaluations, mixtures, envs, eval_envs):
        resource.close()
    if args.track:
        wandb.finish()
    print(f"{table}\nresults in {run_dir}")
    return actor, qf, log_alpha


def main(argv: list[str]) -> None:
    """Train with the flags of the command line; integers may be written 1e6."""
    words = [re.sub(r"(^|=)(\d+(\.\d+)?[eE]\+?\d+)$", lambda m: f"{m[1]}{float(m[2]):.15g}", word) for word in argv]
    train(tyro.cli(Args, args=words))


if __name__ == "__main__":
    main(sys.argv[1:])
