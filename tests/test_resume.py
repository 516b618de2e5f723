"""Stopping and resuming: nothing is lost, a resumed run is the uninterrupted one, and mistakes get one line."""

import csv
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from kills import equal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
import qmp_sac

ROOT = Path(__file__).parent.parent
PATHS = "import sys; sys.path[:0] = ['tests', 'benchmark']; "
SHORT = (
    "--total-timesteps 600 --learning-starts 80 --batch-size 8 --hidden-sizes 16 16 --eval-episodes 1 "
    "--eval-frequency 300 --checkpoint-frequency 200"
).split()


def make_meta_world(seed, vectorization, render_mode):
    """Two tasks of MT10."""
    thunks = [lambda i=i: gym.make("qmp/MetaWorldMT10-v3", task=i, disable_env_checker=True) for i in (0, 4)]
    return SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)


class Mortal(gym.Wrapper):
    """Takes its process with it, as a lack of memory may, in its 30th step, or raises an error there."""

    def __init__(self, task, fault=False):
        super().__init__(gym.make("qmp/PointReach-v0", task=task))
        self.left, self.fault = 30, fault

    def step(self, action):
        self.left -= 1
        if not self.left:
            if self.fault:
                raise LookupError("the robot fell over")
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)


class Noisy(gym.Wrapper):
    """PointReach seen through noise from NumPy's global generator, which is drawn from at creation too."""

    def __init__(self, task):
        super().__init__(gym.make("qmp/PointReach-v0", task=task))
        self.noise = np.random.normal(scale=0.1, size=2)

    def step(self, action):
        obs, *rest = self.env.step(action)
        return (obs + self.noise + np.random.normal(scale=0.1, size=2)).astype(np.float32), *rest


def make_noisy(seed, vectorization, render_mode):
    """Two tasks that draw from NumPy's global generator."""
    return SyncVectorEnv([lambda i=i: Noisy(i) for i in (0, 1)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_silent(seed, vectorization, render_mode):
    """Two pendulums in processes of their own, which do not tell of success."""
    return AsyncVectorEnv([lambda: gym.make("Pendulum-v1")] * 2, autoreset_mode=AutoresetMode.SAME_STEP)


def make_faulty(seed, vectorization, render_mode):
    """Two tasks of PointReach, in processes of their own, that raise an error."""
    return AsyncVectorEnv([lambda i=i: Mortal(i, fault=True) for i in (0, 1)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_mortal(seed, vectorization, render_mode):
    """Two tasks of PointReach, whose processes die."""
    return AsyncVectorEnv([lambda i=i: Mortal(i) for i in (0, 1)], autoreset_mode=AutoresetMode.SAME_STEP)


def main(run_dir, *flags):
    """The command line, short; returns the exit code."""
    try:
        qmp_sac.main([*SHORT, "--run-dir", str(run_dir), *flags])
    except SystemExit as stop:
        return stop.code
    return 0


def crash_at(monkeypatch, step, action, script=qmp_sac):
    """Call `action` at the `step`-th step of the training (evaluations not counted)."""
    checked = script.check_finite
    steps = itertools.count(1)

    def check_finite(name, *args):
        if name == "action" and next(steps) == step:
            action()
        checked(name, *args)

    monkeypatch.setattr(script, "check_finite", check_finite)


def crash():
    raise KeyboardInterrupt


def rows(run_dir, name):
    with open(run_dir / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def snapshot(run_dir):
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; tests must leave it as it is."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main(run_dir) == 0
    return run_dir


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--no-qmp --train-frequency 3 --gradient-steps 2 --no-autotune",
        "--switch-rule softmax --own-policy-prob 0.5 --switch-period 7 --buffer-size 60",
        "--env-id kills:make_pendulums --checkpoint-frequency 100",
        "--env-id test_resume:make_noisy --checkpoint-frequency 100 --eval-frequency 150",
        "--env-id MultistageReacher-v0",
        "--env-id Maze-v0 --total-timesteps 1_500 --eval-frequency 1_500 --checkpoint-frequency 500",
        "--env-id Walker2dMT4-v0",
        "--env-id KitchenMT10-v0 --total-timesteps 1_500 --eval-frequency 1_500 --checkpoint-frequency 500",
        "--env-id MetaWorldCDS-v0 --eval-frequency 600",
        "--env-id test_resume:make_meta_world --total-timesteps 300 --eval-frequency 300 --checkpoint-frequency 100",
    ],
)
def test_resumed_is_uninterrupted(tmp_path, monkeypatch, flags):
    assert main(tmp_path / "whole", *flags.split()) == 0
    for turn in (70, 60):  # after the first checkpoint; then, counted from it, after the second
        crash_at(monkeypatch, turn, crash)
        with pytest.raises(KeyboardInterrupt):
            main(tmp_path / "cut", *flags.split(), *(["--resume"] if turn == 60 else []))
        monkeypatch.undo()
        assert torch.load(tmp_path / "cut" / "checkpoint.pt")["global_step"] > 0
    assert main(tmp_path / "cut", *flags.split(), "--resume") == 0
    assert equal(tmp_path / "whole", tmp_path / "cut")


def test_killed_at_every_kind_of_moment():
    """Six real SIGKILLs, among them before, during and after the writing of a checkpoint."""
    command = [sys.executable, "benchmark/kills.py", "--kills", "6", "--env-ids", "PointReach-v0"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "6 equal to the run that was never stopped" in result.stdout and result.stdout.count(": equal") == 6
    assert int(re.search(r"killed (\d+) times", result.stdout)[1]) >= 5  # the sixth depends on time


def test_without_flags_a_resumed_run_has_its_own(tmp_path, monkeypatch):
    """--run-dir and --resume are enough."""
    flags = "--seed 5 --gamma 0.9 --switch-samples 2 --reward-scale 0.5".split()
    assert main(tmp_path / "whole", *flags) == 0
    crash_at(monkeypatch, 70, crash)
    with pytest.raises(KeyboardInterrupt):
        main(tmp_path / "cut", *flags)
    monkeypatch.undo()
    qmp_sac.main(["--run-dir", str(tmp_path / "cut"), "--resume"])
    assert equal(tmp_path / "whole", tmp_path / "cut")
    record = json.loads((tmp_path / "cut" / "args.json").read_text())
    assert record["args"]["gamma"] == 0.9 and record["args"]["hidden_sizes"] == [16, 16]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(tmp_path, monkeypatch, capsys, number, code):
    before = signal.getsignal(number)
    crash_at(monkeypatch, 60, lambda: os.kill(os.getpid(), number))
    assert main(tmp_path / "run") == code
    assert signal.getsignal(number) == before
    assert "stopped at step 240" in capsys.readouterr().out
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["global_step"] == 240 and state["replay"]["size"] == 60 and not state["scheduled"]
    monkeypatch.undo()
    assert main(tmp_path / "run", "--resume") == 0
    assert "between checkpoints" in capsys.readouterr().out
    assert [row["global_step"] for row in rows(tmp_path / "run", "evaluations")] == ["300"] * 4 + ["600"] * 4


def test_control_c_reaches_worker_processes_too(tmp_path):
    """As in a terminal, the whole process group gets the signal; the workers must outlive it."""
    code = (
        PATHS + "import os, pytest, signal, test_resume; "
        "os.setpgrp(); test_resume.crash_at(pytest.MonkeyPatch(), 60, lambda: os.killpg(0, signal.SIGINT)); "
        f"sys.exit(test_resume.main({str(tmp_path / 'run')!r}, '--vectorization', 'async'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 130 and "stopped at step 240" in result.stdout, result.stderr
    assert "finishing this turn" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flags, code, words",
    [
        (["--buffer-size", "1e14", "--total-timesteps", "1e15"], 2, "GiB"),
        (["--q-lr", "1e30"], 1, "non-finite"),
        (["--env-id", "test_resume:make_mortal"], 1, "the process at the other end of a pipe has ended"),
        (["--env-id", "test_resume:make_silent"], 2, "info['success'] is missing"),
    ],
)
def test_worker_processes_end_in_silence(tmp_path, flags, code, words):
    flags = [*flags, "--vectorization", "async"]
    command = PATHS + f"import test_resume; sys.exit(test_resume.main({str(tmp_path / 'run')!r}, *{flags!r}))"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == code and words in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_an_error_of_an_environment_ends_the_program(tmp_path):
    """And does not leave it waiting for its processes."""
    flags = ["--env-id", "test_resume:make_faulty"]
    command = PATHS + f"import test_resume; sys.exit(test_resume.main({str(tmp_path / 'run')!r}, *{flags!r}))"
    result = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 1 and result.stderr.strip().endswith("LookupError: the robot fell over")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_evaluation_at_once(finished, number):
    before = snapshot(finished)
    code = (
        PATHS + "import os, qmp_sac, test_resume; "
        f"qmp_sac.evaluate = lambda *_: os.kill(os.getpid(), {int(number)}); "
        f"sys.exit(test_resume.main({str(finished)!r}, '--eval-only', '--vectorization', 'async'))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 128 + number and not result.stderr, result.stderr
    assert snapshot(finished) == before


def test_a_longer_training_goes_on(tmp_path, capsys):
    assert main(tmp_path / "run") == 0
    assert main(tmp_path / "run", "--resume") == 2
    assert "finished" in capsys.readouterr().err
    assert main(tmp_path / "run", "--resume", "--total-timesteps", "900") == 0
    steps = [int(row["global_step"]) for row in rows(tmp_path / "run", "evaluations")]
    assert steps == [300] * 4 + [600] * 4 + [900] * 4
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["replay"]["size"] == 225 and state["args"]["total_timesteps"] == 900


def test_eval_only(tmp_path, capsys, finished):
    run_dir = tmp_path / "run"
    subprocess.run(["cp", "-r", finished, run_dir], check=True)
    before = snapshot(run_dir)
    assert main(run_dir, "--eval-only") == 0
    out = capsys.readouterr().out
    assert "own policies, without noise:" in out and "mixtures, sampled" in out and "final_evaluation.csv" in out
    after = snapshot(run_dir)
    assert after.keys() - before.keys() == {"final_evaluation.csv"}
    assert all(after[name] == content for name, content in before.items())
    final = rows(run_dir, "final_evaluation")
    assert [(row["acting"], row["task"]) for row in final] == [
        (acting, task) for acting in ("own", "mixture") for task in envs.TASKS["PointReach-v0"]
    ]
    # The same episodes as in the run's last evaluation, with the same policies.
    for row, last in zip(final[:4], rows(run_dir, "evaluations")[-4:], strict=True):
        assert {key: row[key] for key in last} == last
    assert [row["episodic_return"] for row in final[:3]] != [row["episodic_return"] for row in final[4:7]]
    assert main(run_dir, "--eval-only", "--capture-video", "--eval-episodes", "2") == 0
    assert len(list((run_dir / "videos").glob("final-*.mp4"))) == 2
    assert {path.name: path.read_bytes() for path in run_dir.iterdir() if path.name in before} == before


def test_csv_files_are_trimmed(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("step,a\n10,1\n20,2\n30,3\n1")
    with qmp_sac.open_csv(path, ["step", "a"], 20) as file:
        print("25,4", file=file)
        assert path.read_text() == "step,a\n10,1\n20,2\n25,4\n"  # flushed already
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_replace_file_keeps_the_old_one(tmp_path):
    def fail_halfway(file):
        file.write(b"half")
        raise OSError("disk full")

    path = tmp_path / "checkpoint.pt"
    qmp_sac.replace_file(path, lambda file: file.write(b"old"))
    with pytest.raises(OSError):
        qmp_sac.replace_file(path, fail_halfway)
    assert snapshot(tmp_path) == {"checkpoint.pt": b"old"}


def test_checkpoint_holds_the_filled_replay_without_a_copy(tmp_path):
    rb = qmp_sac.ReplayBuffer(3, 1_000, 4, 2, torch.device("cpu"))
    for _ in range(10):
        rb.add(*(np.random.randn(*shape) for shape in ((3, 4), (3, 2), (3,), (3, 4), (3,))))
    state = rb.state_dict()
    for name, field in rb.data._asdict().items():
        assert state[name].data_ptr() == field.data_ptr()  # no copy
        assert state[name].untyped_storage().nbytes() == field[:10].nbytes  # and nothing else would be written
    grown = qmp_sac.ReplayBuffer(3, 2_000, 4, 2, torch.device("cpu"))
    grown.load_state_dict(state)
    assert (grown.pos, grown.size) == (10, 10) and torch.equal(grown.data.obs[:10], rb.data.obs[:10])


def test_tensorboard_goes_on(tmp_path, monkeypatch):
    crash_at(monkeypatch, 120, crash)  # step 480, after the checkpoint at 400 and more episodes
    with pytest.raises(KeyboardInterrupt):
        main(tmp_path / "run", "--checkpoint-frequency", "400")
    monkeypatch.undo()
    assert main(tmp_path / "run", "--resume") == 0
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    steps = [event.step for event in events.Scalars("charts/episodic_return/reach-up")]
    assert steps == [200, 400, 600]
    assert [event.step for event in events.Scalars("eval/success_rate")] == [300, 600]


def test_a_refusal_of_wandb_is_one_line(tmp_path, monkeypatch, capsys):
    import wandb

    def refuse(**_):
        raise wandb.errors.CommError("no such entity")

    monkeypatch.setattr(wandb, "init", refuse)
    assert main(tmp_path / "run", "--track") == 2
    assert capsys.readouterr().err == "qmp_sac.py: error: --track: no such entity\n"
    assert not (tmp_path / "run").exists()


def test_wandb_goes_on_with_the_same_run(tmp_path, wandb_offline):
    assert main(tmp_path / "run", "--track") == 0
    assert main(tmp_path / "run", "--track", "--resume", "--total-timesteps", "700") == 0
    names = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert len({name.split("-")[-1] for name in names}) == 1 <= len(names)


BAD_INPUT = {
    "--batch-size 0": "--batch-size must be from 1 to 2**63 - 1, not 0",
    "--gamma 1.5": "--gamma must be from 0 to 1, not 1.5",
    "--gamma nan": "--gamma must be from 0 to 1",
    "--switch-samples -1": "--switch-samples must be from 0 to 2**63 - 1",
    "--own-policy-prob 2": "--own-policy-prob must be from 0 to 1",
    "--alpha 0": "--alpha must be above 0",
    "--policy-lr inf": "--policy-lr must be above 0",
    "--seed 99999999999999999999": "--seed must be from 0 to 2**63 - 1",
    "--seed 1e999999999999": "invalid literal",
    "--switch-period 1e30": "--switch-period must be from 1 to 2**63 - 1",
    "--num-threads 1e10": "--num-threads must be from 1 to 1024",
    "--hidden-sizes": "--hidden-sizes must be one or more",
    "--hidden-sizes 16 0": "--hidden-sizes must be one or more",
    "--total-timesteps 1.5": "invalid literal",
    "--total-timesteps 80": "--learning-starts 80 must be below --total-timesteps 80",
    "--batch-sise 3": "Perhaps you meant: --batch-size",
    "--switch-rule argmx": "'argmax', 'softmax', 'uniform'",
    "--seed": "--seed",
    "surplus": "surplus",
    "--resume --eval-only": "exclude each other",
    "--resume": "checkpoint.pt: No such file",
    "--eval-only": "checkpoint.pt: No such file",
    "--env-id PointReech-v0": "did you mean 'PointReach-v0'",
    "--env-id test_envs:make_failing": "RuntimeError: no such robot",
    "--env-id test_envs:make_nothing": "not a gymnasium.vector.VectorEnv",
    "--env-id test_envs:make_unequal": "bservation",
    "--env-id test_envs:make_unbounded": "bounded",
    "--env-id test_envs:make_raising": "RuntimeError: the robot fell over",
    "--env-id test_envs:make_no_success": "info['success'] is missing",
    "--env-id test_envs:make_drift --capture-video": "cannot render",
    "--total-timesteps 1e15 --buffer-size 1e14": "GiB",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input(tmp_path, capsys, flags):
    assert main(tmp_path / "run", *flags.split()) == 2
    error = capsys.readouterr().err
    assert BAD_INPUT[flags] in error and error.startswith("qmp_sac.py: error: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_resume_needs_a_folder(capsys):
    for flag in ("--resume", "--eval-only"):
        with pytest.raises(SystemExit) as stop:
            qmp_sac.main([flag])
        assert stop.value.code == 2 and "--run-dir" in capsys.readouterr().err


def test_an_environment_that_always_draws_is_taken(tmp_path):
    assert main(tmp_path / "run", "--env-id", "test_envs:make_always_drawn") == 0


@pytest.mark.parametrize("run_dir", ["file/run", "finished", "long" * 100])
def test_a_folder_that_cannot_be_made(tmp_path, capsys, finished, run_dir):
    (tmp_path / "file").touch()
    run_dir = finished if run_dir == "finished" else tmp_path / run_dir
    before = snapshot(finished)
    assert main(run_dir) == 2
    error = capsys.readouterr().err
    assert str(run_dir) in error and error.count("\n") == 1
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--hidden-sizes 16", "--hidden-sizes was (16, 16) in this run and cannot become (16,)"),
        ("--env-id MetaWorldMT10-v3", "--env-id was PointReach-v0"),
        ("--gamma 0.9", "--gamma was 0.99"),
        ("--seed 2", "--seed was 1"),
        ("--no-qmp", "--qmp was True"),
    ],
)
def test_a_changed_run_is_refused(finished, capsys, flags, words):
    before = snapshot(finished)
    assert main(finished, "--resume", "--total-timesteps", "700", *flags.split()) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert snapshot(finished) == before


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


@pytest.mark.parametrize("kind", ["cut off", "empty", "text", "foreign", "malicious", "other script", "other version"])
def test_a_bad_checkpoint_is_refused(tmp_path, monkeypatch, capsys, finished, kind):
    monkeypatch.chdir(tmp_path)
    content = (finished / "checkpoint.pt").read_bytes()
    state = torch.load(finished / "checkpoint.pt", weights_only=True)
    path = tmp_path / "run" / "checkpoint.pt"
    path.parent.mkdir()
    if kind == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif kind == "malicious":
        path.write_bytes(pickle.dumps(Malice()))
    elif kind == "other script":
        torch.save(state | {"script": "qmp_other.py"}, path)
    elif kind == "other version":
        torch.save(state | {"args": state["args"] | {"colour": "red"}}, path)
    else:
        path.write_bytes({"cut off": content[: len(content) // 2], "empty": b"", "text": b"hello"}[kind])
    before = snapshot(path.parent)
    for flag in ("--resume", "--eval-only"):
        assert main(path.parent, flag) == 2
        error = capsys.readouterr().err
        assert "checkpoint.pt" in error and error.count("\n") == 1
    assert snapshot(path.parent) == before and not (tmp_path / "malice").exists()


def test_a_changed_environment_is_refused(tmp_path, monkeypatch, capsys):
    flags = ["--env-id", "kills:make_pendulums"]
    assert main(tmp_path / "run", *flags) == 0
    import test_envs

    monkeypatch.setattr("kills.make_pendulums", test_envs.make_drift)
    assert main(tmp_path / "run", *flags, "--resume", "--total-timesteps", "700") == 2
    assert "were (2, 4, 1), now they are (3, 1, 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env-id test_envs:make_nan", "a non-finite observation in task task-1 at step 80"),
        ("--env-id test_envs:make_nan_reset", "a non-finite observation in task task-1 at step"),
        ("--env-id test_envs:make_infinite", "a non-finite reward in task task-1 at step 80"),
        ("--q-lr 1e30", "non-finite"),
        ("--policy-lr 1e30 --no-qmp", "non-finite"),
    ],
)
def test_numbers_that_are_not_finite_stop_the_run(tmp_path, capsys, flags, words):
    flags = [*flags.split(), "--checkpoint-frequency", "20"]
    assert main(tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err
    assert words in error and "at step" in error and error.count("\n") == 1
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert 60 <= state["global_step"] <= 100  # a good one
    assert all(x.isfinite().all() for x in state["agent"]["actor"].values())
    assert all(x.isfinite().all() for x in state["agent"]["qf"].values())
    assert all(state["replay"][name].isfinite().all() for name in ("obs", "actions", "rewards", "next_obs"))


def limited(run_dir, megabytes, *flags):
    """Run in a process whose files may not grow beyond a size, as on a full disk."""
    code = (
        PATHS + f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({int(megabytes * 2**20)},) * 2); "
        "import test_resume; "
        f"sys.exit(test_resume.main({str(run_dir)!r}, *{flags!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_disk_full_while_writing_a_checkpoint(tmp_path):
    assert main(tmp_path / "whole") == 0
    sizes = (tmp_path / "whole" / "checkpoint.pt").stat().st_size / 2**20
    result = limited(tmp_path / "run", sizes - 0.005)  # the first ones fit, the last ones do not
    assert result.returncode == 1 and "File too large" in result.stderr and "--resume" in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "run").glob("*.tmp"))
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["global_step"] < 600
    assert main(tmp_path / "run", "--resume") == 0
    assert equal(tmp_path / "whole", tmp_path / "run")


def test_disk_full_while_writing_an_evaluation(finished, monkeypatch, capsys):
    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    before = snapshot(finished)
    monkeypatch.setattr(qmp_sac, "replace_file", full)
    assert main(finished, "--eval-only") == 1
    error = capsys.readouterr().err
    assert "No space left" in error and error.endswith(" --eval-only\n") and error.count("\n") == 1
    assert snapshot(finished) == before


def test_disk_full_while_writing_a_csv_file(tmp_path, monkeypatch, capsys):
    class Full:
        def __init__(self, file):
            self.file, self.rows = file, 0

        def write(self, text):
            self.rows += 1
            if self.rows > 50:
                raise OSError(28, "No space left on device")
            self.file.write(text)

        def __getattr__(self, name):
            return getattr(self.file, name)

    open_csv = qmp_sac.open_csv
    assert main(tmp_path / "whole") == 0
    monkeypatch.setattr(qmp_sac, "open_csv", lambda path, *args: Full(open_csv(path, *args)))
    assert main(tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert "No space left" in error and error.count("\n") == 1
    monkeypatch.undo()
    assert main(tmp_path / "run", "--resume") == 0
    assert equal(tmp_path / "whole", tmp_path / "run")
