"""What several test modules share: short runs, plain networks and learners, tasks as a user's."""

import importlib
import itertools
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import gymnasium as gym
import numpy as np
import pandas as pd
import torch
from gymnasium.spaces import Box
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from envs.pointreach import TASKS

ROOT = Path(__file__).parent.parent
SCRIPTS = ("qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds")
SHORT = (
    "--total-timesteps 600 --learning-starts 80 --batch-size 8 --hidden-sizes 16 16 "
    "--eval-episodes 1 --eval-frequency 300 --checkpoint-frequency 200 --no-cuda"
).split()
N = len(TASKS)
F64 = torch.float64


# Runs


def train(script, run_dir, flags=""):
    """A short run in this process; returns its agent."""
    main = importlib.import_module(script).main
    return main([*SHORT, "--run-dir", str(run_dir), *flags.split()])


def rows(run_dir):
    return pd.read_csv(run_dir / "evaluations.csv")


def checkpoint(run_dir):
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


def scalars(run_dir):
    """{tag: events} of TensorBoard."""
    events = EventAccumulator(str(run_dir)).Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def same(a, b):
    """Whether two checkpoints, or parts of them, are equal to the last bit, but for the folder."""
    if isinstance(a, dict):
        names = a.keys() - {"run_dir", "resume"}
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in names)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def same_weights(a, b):
    return same(a.state_dict(), b.state_dict())


def same_runs(a, b):
    """Whether two runs left the same checkpoint and the same evaluations."""
    files = [(run_dir / "evaluations.csv").read_bytes() for run_dir in (a, b)]
    return files[0] == files[1] and same(checkpoint(a), checkpoint(b))


# Programs


class Program(multiprocessing.get_context("fork").Process):
    """`python SCRIPT.py ARGV` in a fork of this process, after `prepare()` there."""

    def __init__(self, script, *argv, prepare=None):
        import torch._dynamo  # noqa: F401, or every fork would, which takes seconds

        super().__init__()
        self.argv = [f"{script}.py", *map(str, argv)]
        self.prepare = prepare
        self.output = tempfile.TemporaryFile()
        self.start()

    def run(self):
        os.setsid()  # as a shell does; its processes are those of its session
        # A shell's "&" makes its programs ignore Ctrl-C, and theirs too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(self.output.fileno(), 1)
        os.dup2(self.output.fileno(), 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)
        sys.argv = self.argv
        if self.prepare:
            self.prepare()
        runpy.run_path(str(ROOT / self.argv[0]), run_name="__main__")
        sys.stdout.flush()

    @property
    def text(self):
        """What it has printed so far, errors too."""
        return os.pread(self.output.fileno(), 2**24, 0).decode(errors="replace")

    def processes_left(self):
        """The processes of its session that do not end in ten seconds; they are killed."""
        end = time.monotonic() + 10
        while (left := members(self.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return left


def members(session):
    """Processes of a session, but for those that have ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def command(script, *argv, prepare=None):
    """Exit code and output of a program that ends by itself and leaves no process."""
    program = Program(script, *argv, prepare=prepare)
    program.join(60)
    assert not program.processes_left(), program.text
    return program.exitcode, program.text


def die(*_):
    """End this process as `kill -9` does, or a lack of memory may."""
    os.kill(os.getpid(), signal.SIGKILL)


def at(count, owner, name, before=None, after=None):
    """Replace a function by one that calls `before` or `after` too, in its `count`-th call."""
    original, calls = getattr(owner, name), itertools.count(1)

    def replaced(*args, **kwargs):
        is_due = next(calls) == count
        if is_due and before:
            before(*args)
        result = original(*args, **kwargs)
        if is_due and after:
            after(*args)
        return result

    setattr(owner, name, replaced)


# Learners


def layers(net):
    """The stacked linear layers of a network."""
    found = [module for module in net.modules() if hasattr(module, "weight")]
    assert all(module.weight.dim() == 3 for module in found)
    return found


def plain_linear(stacked, i):
    """Slice i of a stacked linear layer as `nn.Linear`, with memory of its own."""
    _, fan_in, fan_out = stacked.weight.shape
    linear = nn.Linear(fan_in, fan_out, dtype=stacked.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(stacked.weight[i].T)
        linear.bias.copy_(stacked.bias[i, 0])
    return linear


def unstack(net, i):
    """Slice i of a stacked perceptron, as plain `nn.Linear` and ReLU."""
    plain = []
    for stacked in layers(net):
        plain += [plain_linear(stacked, i), nn.ReLU()]
    return nn.Sequential(*plain[:-1])


def make_learner(script, N, O, A, args):
    """An agent of the script and its optimizers, in float64, alphas apart."""
    agent = script.Agent(N, O, A, args).double()
    with torch.no_grad():
        agent.log_alpha.copy_(torch.linspace(-1.5, 0.5, len(agent.log_alpha)))
    parameters = {"q": agent.qf.parameters(), "actor": agent.actor.parameters()}
    parameters["alpha"] = [agent.log_alpha]
    if hasattr(agent, "center"):
        parameters["center"] = agent.center.parameters()
    rates = {"actor": args.policy_lr, "center": args.policy_lr}
    optimizers = {
        name: torch.optim.Adam(group, lr=rates.get(name, args.q_lr), fused=True)
        for name, group in parameters.items()
    }
    return agent, optimizers


def random_batch(script, N, B, O, A, dtype=F64):
    return script.Batch(
        obs=torch.randn(N, B, O, dtype=dtype),
        actions=2 * torch.rand(N, B, A, dtype=dtype) - 1,
        rewards=3 * torch.randn(N, B, dtype=dtype),
        next_obs=torch.randn(N, B, O, dtype=dtype),
        terminations=(torch.rand(N, B) < 0.3).to(dtype),
    )


def fixed_noise(noise):
    """A context in which `torch.randn` returns `noise`; an update draws [2, N, B, A], once."""
    return mock.patch("torch.randn", lambda *shape, **options: noise.view(shape))


# Tasks, as a user's


class Drift(gym.Env):
    """Tells task and step in the observation, and the action too in the reward.

    The first task terminates after 2 steps, the others are cut after 3, 4.
    """

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)
    metadata = {"metrics": ("distance",)}

    def __init__(self, task):
        self.task = task

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.array([100 * self.task], np.float32), {}

    def step(self, action):
        self.steps += 1
        end = self.steps == 2 + self.task
        info = {"success": self.steps > 2, "distance": float(self.steps)}
        obs = np.array([100 * self.task + self.steps], np.float32)
        reward = float(obs[0] + action[0])
        return obs, reward, end and self.task == 0, end and self.task > 0, info


def make_drift(render_mode=None):
    return {name: lambda i=i: Drift(i) for i, name in enumerate("abc")}
