"""Shared by all tests: one thread, repeatable Hypothesis examples without deadlines, and slices of a stack."""

import signal

import pytest
import torch
from hypothesis import settings
from torch import nn

torch.set_num_threads(1)
settings.register_profile("qmp", deadline=None, derandomize=True)
settings.load_profile("qmp")


@pytest.fixture(scope="session")
def unstack():
    """A function (net, i) -> slice i of a stacked perceptron, as plain `torch.nn.Linear` and ReLU with own memory."""

    def unstack(net: nn.Sequential, i: int) -> nn.Sequential:
        layers = []
        for stacked in (module for module in net if hasattr(module, "weight")):
            _, fan_in, fan_out = stacked.weight.shape
            linear = nn.Linear(fan_in, fan_out, device=stacked.weight.device, dtype=stacked.weight.dtype)
            with torch.no_grad():
                linear.weight.copy_(stacked.weight[i].T)
                linear.bias.copy_(stacked.bias[i, 0])
            layers += [linear, nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    return unstack


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    """W&B writes into tmp_path; it keeps its settings for the whole process unless it is torn down."""
    import wandb

    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """The scripts handle SIGINT and SIGTERM; after a test pytest does so again."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
