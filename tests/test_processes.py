"""However a run ends, it ends soon, with its error once, and leaves no process behind."""

import multiprocessing
import os
import time
from signal import SIGINT, SIGKILL, SIGTERM

import gymnasium as gym
import pytest
from helpers import ROOT, SHORT, Program, checkpoint, command, die, members

import envs

LONG = [*SHORT, "--total-timesteps", "1e7", "--buffer-size", "1000", "--eval-frequency", "300"]


class Trouble(gym.Wrapper):
    """A task in which something happens when its environment is made, reset or has stepped."""

    def __init__(self, env, place, happens):
        super().__init__(env)
        self.place, self.happens, self.steps = place, happens, 0
        if place == "make":
            happens()

    def reset(self, **options):
        if self.place == "reset":
            self.happens()
        return self.env.reset(**options)

    def step(self, action):
        self.steps += 1
        if self.place == "step" and self.steps == 70:
            self.happens()
        return self.env.step(action)


def fall():
    raise OSError("the robot fell over")


def make_trouble(render_mode=None):
    place, happens = os.environ["TROUBLE"].split()
    what = {"fall": fall, "die": die}[happens]
    calm, troubled = envs.make_tasks("PointReach2-v0").values()
    return {"calm": calm, "troubled": lambda: Trouble(troubled(), place, what), "quiet": calm}


def flags_of(kind, tmp_path):
    flags = ["--env-id", "test_processes:make_trouble", "--vectorization", kind]
    return [*flags, "--run-dir", tmp_path / "run"]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("place", ["make", "reset", "step"])
def test_an_error_of_a_task(tmp_path, monkeypatch, kind, place):
    monkeypatch.setenv("TROUBLE", f"{place} fall")
    code, out = command("qmp_sac", *LONG, *flags_of(kind, tmp_path))
    assert code == 1 and "the robot fell over" in out.splitlines()[-1], out
    # In the processes' own log it may come once more, but the program ends with one error.
    assert out.count("Traceback") - out.count("During handling") <= 3


def test_a_process_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("TROUBLE", "step die")
    code, out = command("qmp_sac", *LONG, *flags_of("async", tmp_path))
    assert code == 1 and out.endswith("the process of a task has died, or was killed\n"), out


def use_forkserver():
    os.environ["PYTHONPATH"] = str(ROOT)
    multiprocessing.set_forkserver_preload(["envs"])  # once, not in every process
    multiprocessing.set_start_method("forkserver", force=True)


@pytest.mark.parametrize(
    "kind, number",
    [("async", SIGKILL), ("forkserver", SIGTERM), ("sync", SIGINT), ("async", SIGINT)],
)
def test_a_signal_to_the_main_process_or_to_all(tmp_path, kind, number):
    """SIGTERM and SIGKILL to the main process alone, Ctrl-C to all, as in a terminal."""
    run_dir, prepare = tmp_path / "run", None
    flags = ["--env-id", "PointReach2-v0", "--eval-frequency", "1e7", "--run-dir", run_dir]
    if kind == "forkserver":
        kind, prepare = "async", use_forkserver
    program = Program("qmp_sac", *LONG, *flags, "--vectorization", kind, prepare=prepare)
    while "from step 0 on" not in program.text or checkpoint(run_dir)["global_step"] == 0:
        assert program.is_alive(), program.text
        time.sleep(0.02)
    if kind == "async":
        assert len(members(program.pid)) > 4
    send = os.killpg if number == SIGINT else os.kill
    send(program.pid, number)
    program.join(20)
    assert program.exitcode == (1 if number == SIGINT else -number), program.text
    assert not program.processes_left()
    assert program.text.count("Traceback") == (number == SIGINT), program.text
    assert checkpoint(run_dir)["global_step"] > 0
