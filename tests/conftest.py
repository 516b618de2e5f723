"""Settings of all tests, and what some of them need around them."""

import os

import pytest
import torch
from hypothesis import settings

import envs

torch.set_num_threads(1)
settings.register_profile("qmp", deadline=None, derandomize=True)
settings.load_profile("qmp")


@pytest.fixture
def wandb_offline(tmp_path, monkeypatch):
    """W&B writes into tmp_path; it keeps its settings for the process unless it is torn down."""
    import wandb

    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    wandb.teardown()
    yield wandb
    wandb.finish()  # gives standard output back
    wandb.teardown()


@pytest.fixture(scope="session")
def opengl():
    """MuJoCo can draw without a screen; where it cannot, the test is skipped."""
    envs.choose_opengl()
    if "MUJOCO_GL" not in os.environ:
        pytest.skip("no OpenGL here: install libegl1 or libosmesa6")
