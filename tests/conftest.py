"""Shared by all tests: one thread, repeatable Hypothesis examples without deadlines, and fixtures."""

import contextlib
import signal

import gymnasium as gym
import pytest
import torch
from hypothesis import settings
from torch import nn

import envs

torch.set_num_threads(1)
settings.register_profile("qmp", deadline=None, derandomize=True)
settings.load_profile("qmp")


@pytest.fixture(scope="session")
def unstack():
    """A function (net, i) -> slice i of a stacked perceptron, as plain `torch.nn.Linear` and ReLU with own memory."""

    def unstack(net: nn.Module, i: int) -> nn.Sequential:
        layers = []
        for stacked in net.layers:
            _, fan_in, fan_out = stacked.weight.shape
            linear = nn.Linear(fan_in, fan_out, device=stacked.weight.device, dtype=stacked.weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(stacked.weight[i].T)
                linear.bias.copy_(stacked.bias[i, 0])
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return unstack


@pytest.fixture(scope="session")
def make_learner():
    """A function (script, N, O, A, args) -> an agent of the script and its optimizers, in float64, alphas apart."""

    def make_learner(script, N: int, O: int, A: int, args):
        agent = script.Agent(N, O, A, args).double()
        with torch.no_grad():
            agent.log_alpha.copy_(torch.linspace(-1.5, 0.5, len(agent.log_alpha)))
        optimizers = {
            "q": torch.optim.Adam(agent.qf.parameters(), lr=args.q_lr, fused=True),
            "actor": torch.optim.Adam(agent.actor.parameters(), lr=args.policy_lr, fused=True),
            "alpha": torch.optim.Adam([agent.log_alpha], lr=args.q_lr, fused=True),
        }
        return agent, optimizers

    return make_learner


@pytest.fixture
def fixed_noise(monkeypatch):
    """A function noise -> a context in which `torch.randn` returns it; an update draws [2, N, B, A], once."""

    @contextlib.contextmanager
    def fixed_noise(noise):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *shape, **options: noise.view(shape))
            yield

    return fixed_noise


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    """W&B writes into tmp_path; it keeps its settings for the whole process unless it is torn down."""
    import wandb

    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
    }.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield
    wandb.finish()  # gives standard output back
    wandb.teardown()


@pytest.fixture
def opengl(monkeypatch):
    """Drawing without a screen works in this test; where it cannot, the test is skipped."""
    try:
        monkeypatch.setenv("MUJOCO_GL", envs.choose_opengl())
    except gym.error.Error as error:
        pytest.skip(str(error))  # says what to install


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """The scripts handle SIGINT and SIGTERM; after a test pytest does so again."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
