"""However a run ends, it ends soon, with its error once, and leaves no process behind."""

import multiprocessing
import os
import signal
import subprocess

import gymnasium as gym
import pytest
from helpers import ROOT, SHORT, Program, checkpoint, command, die, members

from envs.pointreach import EPISODE_STEPS, PointReach

LONG = [*SHORT, "--total-timesteps", "1e7", "--buffer-size", "1000", "--eval-frequency", "300"]
both_kinds = pytest.mark.parametrize("kind", ["sync", "async"])


class Trouble(gym.Wrapper):
    """PointReach in which something happens when its environment is made, reset or has stepped."""

    def __init__(self, task, place, happens):
        super().__init__(gym.wrappers.TimeLimit(PointReach(task), EPISODE_STEPS))
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


def start_helper():
    """A process of the environment's own, as simulators start them, which nobody stops."""
    subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def make_trouble(render_mode=None):
    place, happens = os.environ["TROUBLE"].split()
    what = {"fall": fall, "die": die, "start_helper": start_helper}[happens]
    return {
        "calm": lambda: Trouble(0, "nowhere", None),
        "troubled": lambda: Trouble(1, place, what),
        "quiet": lambda: Trouble(2, "nowhere", None),
    }


def flags_of(kind, tmp_path):
    flags = ["--env-id", "test_processes:make_trouble", "--vectorization", kind]
    return [*flags, "--run-dir", tmp_path / "run"]


@both_kinds
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
    [
        ("sync", signal.SIGTERM),
        ("async", signal.SIGTERM),
        ("forkserver", signal.SIGTERM),
        ("async", signal.SIGKILL),
        ("sync", signal.SIGINT),
        ("async", signal.SIGINT),
    ],
)
def test_a_signal_to_the_main_process_or_to_all(tmp_path, kind, number):
    """SIGTERM and SIGKILL to the main process alone, Ctrl-C to all, as in a terminal."""
    run_dir, prepare = tmp_path / "run", None
    flags = ["--env-id", "PointReach2-v0", "--eval-frequency", "1e7", "--run-dir", run_dir]
    if kind == "forkserver":
        kind, prepare = "async", use_forkserver
    program = Program("qmp_sac", *LONG, *flags, "--vectorization", kind, prepare=prepare)
    program.wait_for("from step 0 on")
    while checkpoint(run_dir)["global_step"] == 0:
        program.wait_for("")
    if kind == "async":
        assert len(members(program.process.pid)) > 4
    send = os.killpg if number == signal.SIGINT else os.kill
    send(program.process.pid, number)
    code = program.finish(20)
    assert code == (1 if number == signal.SIGINT else -number), program.text
    assert not program.processes_left()
    assert program.text.count("Traceback") == (number == signal.SIGINT), program.text
    assert checkpoint(run_dir)["global_step"] > 0


@both_kinds
def test_helper_processes_do_not_keep_a_finished_run(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("TROUBLE", "make start_helper")
    program = Program("qmp_sac", *SHORT, *flags_of(kind, tmp_path))
    assert program.finish() == 0, program.text
    assert all(
        os.readlink(f"/proc/{pid}/exe").endswith("sleep") for pid in members(program.process.pid)
    )
    program.processes_left(0)
