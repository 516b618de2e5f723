"""Runs that are stopped, killed and resumed equal the undisturbed one to the last bit; mistakes get one line."""

import io
import itertools
import multiprocessing
import os
import pickle
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import pandas as pd
import pytest
import torch
from filelock import FileLock
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_runs import CASES, SHORT, N, rows, train

import envs
import qmp_sac

ROOT = Path(__file__).parent.parent


def die():
    """End this process as `kill -9` does, or a lack of memory may."""
    os.kill(os.getpid(), signal.SIGKILL)


def fall():
    raise OSError("the robot fell over")


class Mortal(gym.Wrapper):
    """Something happens in its 200th step."""

    def __init__(self, task, happens):
        super().__init__(gym.make("qmp/PointReach-v0", task=task))
        self.left, self.happens = 200, happens

    def step(self, action):
        self.left -= 1
        if not self.left:
            self.happens()
        return self.env.step(action)


def make_mortal(*_, happens=die):
    return AsyncVectorEnv([lambda i=i: Mortal(i, happens) for i in (0, 1)], autoreset_mode=AutoresetMode.SAME_STEP)


def make_faulty(*_):
    return make_mortal(happens=fall)


def two_tasks():
    thunks = [lambda i=i: gym.make("qmp/PointReach-v0", task=i) for i in (0, 1)]
    return SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)


def make_wandering(*_):
    """Changes the working directory, as some simulators do."""
    os.makedirs("elsewhere", exist_ok=True)
    os.chdir("elsewhere")
    return two_tasks()


def make_renamed(*_):
    """Its tasks' names come from outside."""
    vec = two_tasks()
    vec.metadata = vec.metadata | {"tasks": os.environ["NAMES"].split()}
    return vec


def command(*argv, prepare=None, encoding="utf-8", short=True):
    """`python qmp_sac.py ARGV` in a fork of this process, after `prepare()` there: exit code, stdout and stderr."""
    argv = [*(SHORT if short else []), *map(str, argv)]
    parent, child = multiprocessing.Pipe(duplex=False)

    def run():
        with io.BytesIO() as out, io.BytesIO() as err:
            sys.argv = ["qmp_sac.py", *argv]
            sys.stdout, sys.stderr = io.TextIOWrapper(out, encoding), io.TextIOWrapper(err, errors="backslashreplace")
            try:
                if prepare:
                    prepare()
                runpy.run_path(str(ROOT / "qmp_sac.py"), run_name="__main__")
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                child.send((out.getvalue().decode(encoding), err.getvalue().decode()))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    child.close()
    try:
        out, err = parent.recv()
    except EOFError:  # killed
        out = err = None
    process.join()
    return SimpleNamespace(code=process.exitcode, out=out, err=err)


def resume(run_dir, *flags, **options):
    return command("--resume", run_dir, *flags, short=False, **options)


def at(count, owner, name, before=None, after=None):
    """Replace a method or function by one that calls `before` or `after` too, at its `count`-th call."""
    original, calls = getattr(owner, name), itertools.count(1)

    def replaced(*args, **kwargs):
        due = next(calls) == count
        if due and before:
            before(*args)
        result = original(*args, **kwargs)
        if due and after:
            after(*args)
        return result

    setattr(owner, name, replaced)


def same(a, b):
    """Whether two checkpoints, or parts of them, are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a.keys() - {"run_dir"})
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def checkpoint(run_dir):
    return torch.load(run_dir / "checkpoint.pt", weights_only=True)


def equal(a, b):
    """Whether two runs left the same checkpoint and the same evaluations."""
    files = [(run_dir / "evaluations.csv").read_bytes() for run_dir in (a, b)]
    return files[0] == files[1] and same(checkpoint(a), checkpoint(b))


def snapshot(run_dir):
    return {path.name: path.read_bytes() for path in run_dir.iterdir()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; tests leave it as it is."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    train("qmp_sac", run_dir)
    return run_dir


@pytest.fixture
def copied(tmp_path, finished):
    """A copy of it, to change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.mark.parametrize(
    "script, flags",
    [
        *CASES,
        ("qmp_sac", "--switch-rule softmax --own-policy-prob 0.5 --switch-period 7 --buffer-size 60"),
        ("qmp_sac", "--switch-samples 2 --switch-entropy --eval-mixture --checkpoint-frequency 90"),
        ("qmp_sac", "--env-id test_runs:make_noisy --eval-frequency 150"),
        ("qmp_uds", "--env-id MultistageReacher-v0 --eval-frequency 600"),
        ("qmp_dnc", "--env-id Walker2dMT4-v0 --eval-frequency 600"),
        ("qmp_sac", "--env-id MetaWorld:reach-v3,drawer-open-v3 --eval-frequency 600 --total-timesteps 400"),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch, script, flags):
    cut = str(tmp_path / "cut")
    train(script, tmp_path / "whole", flags)
    state = checkpoint(tmp_path / "whole")
    turns = state["global_step"] // len(state["totals"])
    script, steps = import_module(script), []
    for turn in (turns // 2 + 1, turns // 3):  # the second is counted from a checkpoint
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(script.ReplayBuffer, "add", script.ReplayBuffer.add)  # to be undone
            at(turn, script.ReplayBuffer, "add", before=lambda *_: 1 / 0)
            script.main([*SHORT, *flags.split(), "--run-dir", cut] if not steps else ["--resume", cut])
        steps.append(checkpoint(Path(cut))["global_step"])
    assert 0 < steps[0] <= steps[1] < state["global_step"]
    script.main(["--resume", cut])
    assert equal(tmp_path / "whole", tmp_path / "cut")


def half_a_checkpoint(state, path):
    whole = io.BytesIO()
    torch.save(state, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    die()


def half_a_row(rows, path, *_):
    with open(path, "a") as file:
        file.write("300,own,cor")
    die()


def renaming(source, target):
    if str(target).endswith("checkpoint.pt"):
        die()


KILLS = [
    lambda: at(60, torch.optim.Adam, "step", before=lambda *_: die()),
    lambda: at(1, pd.DataFrame, "to_csv", before=half_a_row),
    lambda: at(1, torch, "save", before=half_a_checkpoint),
    lambda: at(1, os, "replace", before=renaming),
    lambda: at(1, os, "replace", after=renaming),
]


def test_killed_at_every_kind_of_moment(tmp_path, finished):
    """One run, killed again and again by SIGKILL and resumed, after a first checkpoint."""
    run_dir = tmp_path / "run"
    killed = command("--run-dir", run_dir, prepare=lambda: at(2, torch, "save", before=lambda *_: die()))
    assert killed.code == -signal.SIGKILL and checkpoint(run_dir)["global_step"] == 200
    for prepare, step in zip(KILLS, (200, 200, 200, 200, 400), strict=True):
        killed = resume(run_dir, prepare=prepare)
        assert killed.code == -signal.SIGKILL and checkpoint(run_dir)["global_step"] == step
    assert resume(run_dir).code == 0
    assert equal(finished, run_dir)


def test_a_longer_training_goes_on(tmp_path):
    """To the steps of a run that was as long from the start, though that is below the default of --learning-starts."""
    train("qmp_sac", tmp_path / "whole", "--eval-frequency 200")
    train("qmp_sac", tmp_path / "run", "--eval-frequency 200 --total-timesteps 400")
    qmp_sac.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "600"])
    assert equal(tmp_path / "whole", tmp_path / "run")
    before = (tmp_path / "run" / "evaluations.csv").read_bytes()
    qmp_sac.main(["--resume", str(tmp_path / "run")])  # there is nothing left to do
    assert (tmp_path / "run" / "evaluations.csv").read_bytes() == before


def test_tensorboard_goes_on(tmp_path):
    killed = command("--run-dir", tmp_path / "run", prepare=lambda: at(3, torch, "save", before=lambda *_: die()))
    assert killed.code == -signal.SIGKILL and resume(tmp_path / "run").code == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert steps["eval/success_rate"] == [300, 600]
    # Losses come at every hundredth update; nothing comes twice, though it was written after the last checkpoint.
    assert steps["losses/qf1_loss"] == [100 * N] and all(len(x) == len({*x}) for x in steps.values())


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_turn(tmp_path, number, code):
    run_dir = tmp_path / "run"
    stopped = command(
        "--run-dir",
        run_dir,
        prepare=lambda: at(90, torch.optim.Adam, "step", after=lambda *_: os.kill(os.getpid(), number)),
    )
    step = 80 + 30 * N  # the 30th update, of three optimisers
    assert stopped.code == code and not stopped.err
    assert f"stopped at step {step}; to go on: python qmp_sac.py --resume {run_dir}" in stopped.out
    state = checkpoint(run_dir)
    assert state["global_step"] == step and state["replay"]["added"] == step // N
    assert state["q"]["state"][0]["step"] == 30
    assert resume(run_dir).code == 0
    assert rows(run_dir)["global_step"].tolist() == [300] * N + [600] * N


def test_a_signal_in_the_second_of_two_evaluations(tmp_path):
    """Nothing of the first is kept, and both are made up for, with who acted; and so if they are interrupted again."""

    def prepare():
        evaluate, turn = envs.evaluate, itertools.count(1)

        def second_is_stopped(*rest):
            if next(turn) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return evaluate(*rest)

        envs.evaluate = second_is_stopped

    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    train("qmp_sac", whole, "--eval-mixture --eval-frequency 600")
    assert command("--run-dir", run_dir, "--eval-mixture", "--eval-frequency", 600, prepare=prepare).code == 130
    assert checkpoint(run_dir)["global_step"] == 600 and not (run_dir / "evaluations.csv").read_bytes()
    assert resume(run_dir, prepare=prepare).code == 130 and not (run_dir / "evaluations.csv").read_bytes()
    assert resume(run_dir).code == 0
    assert (run_dir / "evaluations.csv").read_bytes() == (whole / "evaluations.csv").read_bytes()
    before = snapshot(run_dir)
    assert resume(run_dir, "--eval-only", prepare=prepare).code == 130 and snapshot(run_dir) == before


@pytest.mark.parametrize("script, weight", [("qmp_sac", "net"), ("qmp_mtsac", "heads"), ("qmp_mtsac", "trunk")])
def test_a_broken_weight_is_told_with_its_task(tmp_path, monkeypatch, script, weight):
    """And the last good checkpoint is kept."""
    module, tasks = import_module(script), envs.TASKS["PointReach-v0"]
    save = module.Run.save

    def broken(run, global_step):
        if global_step > 300:
            *_, bias = getattr(run.mixture.agent.qf, weight).parameters()  # of the last layer
            bias.data[1 if weight == "trunk" else N + 2] = torch.nan  # of the second critic
        save(run, global_step)

    monkeypatch.setattr(module.Run, "save", broken)
    named = "all tasks" if weight == "trunk" else tasks[2]
    with pytest.raises(FloatingPointError, match=f"weights are not finite, of {named}$"):
        train(script, tmp_path / "run")
    assert checkpoint(tmp_path / "run")["global_step"] <= 300


def test_broken_policies_are_told_in_one_line(tmp_path):
    def spoil(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    result = command("--run-dir", tmp_path / "run", prepare=lambda: at(150, torch.optim.Adam, "step", after=spoil))
    assert result.code == 1 and result.err == "qmp_sac.py: error: a non-finite action in task corner-north-east\n"
    assert checkpoint(tmp_path / "run")["global_step"] == 200


def test_tasks_of_a_run_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMES", "a b")
    assert command("--run-dir", tmp_path / "run", "--env-id", "test_resume:make_renamed").code == 0
    monkeypatch.setenv("NAMES", "b a")
    before = snapshot(tmp_path / "run")
    result = resume(tmp_path / "run", "--total-timesteps", 800)
    assert result.code == 2 and result.err.endswith("error: tasks of this run are a, b, not b, a\n")
    assert snapshot(tmp_path / "run") == before


def start(*argv, **options):
    """`python qmp_sac.py ARGV` as a program of its own."""
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, ROOT / "qmp_sac.py", *map(str, argv)], env=environ, **pipes, **options)


def test_control_c_reaches_worker_processes_too(tmp_path):
    """As in a terminal, the whole process group gets the signal; the workers must outlive it."""
    flags = [*SHORT, "--total-timesteps", "1e7", "--vectorization", "async", "--run-dir", tmp_path / "run"]
    program = start(*flags, start_new_session=True)
    while not program.stdout.readline().startswith("step 300"):
        assert program.poll() is None
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate()
    assert program.returncode == 130 and "stopped at step" in out and not err
    assert checkpoint(tmp_path / "run")["global_step"] >= 300


@pytest.mark.parametrize(
    "function, words",
    [
        ("make_mortal", "\\Aqmp_sac.py: error: the process of an environment has died\n\\Z"),
        ("make_faulty", "(?s)Traceback.*\\nRuntimeError: the environment raised OSError: the robot fell over\n\\Z"),
    ],
)
def test_trouble_in_a_worker_process(tmp_path, function, words):
    """Its death is told in one line, its error is the user's to read; nothing waits for it."""
    program = start(*SHORT, "--env-id", f"test_resume:{function}", "--run-dir", tmp_path / "run")
    _, err = program.communicate()
    assert program.returncode == 1 and re.search(words, err), err


def test_output_that_cannot_be_printed(tmp_path):
    """A folder with an umlaut where standard output is ASCII, as in containers."""
    run_dir = tmp_path / "köln"
    result = command("--run-dir", run_dir, encoding="ascii")
    assert result.code == 0 and not result.err and "k\\xf6ln" in result.out
    assert len(rows(run_dir)) == 2 * N


def test_a_second_process_is_refused(copied):
    """Before it changes anything, be it only the rows behind the checkpoint."""
    with open(copied / "evaluations.csv", "a") as file:
        file.write("700,own,")
    with FileLock(copied / "running.lock"):
        before = snapshot(copied)
        result = resume(copied, "--total-timesteps", 700)
        assert snapshot(copied) == before
    assert result.code == 2 and "running.lock" in result.err and result.err.count("\n") == 1
    assert resume(copied, "--total-timesteps", 700).code == 0


def test_default_names_of_folders(tmp_path):
    """Runs started in the same second have folders of their own, and their names tell QMP from its base method."""

    def prepare():
        time.strftime = lambda *_: "now"
        os.chdir(tmp_path)

    assert command(prepare=prepare).code == command(prepare=prepare).code == 0
    assert command("--no-qmp", prepare=prepare).code == 0
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "runs").iterdir())
    assert names == ["PointReach-v0__qmp_sac-no-qmp__1__now"] + ["PointReach-v0__qmp_sac__1__now"] * 2


@pytest.mark.parametrize("run_dir", ["1e5", "runs/x"])
def test_folders_are_taken_literally(tmp_path, run_dir):
    """Also if they look like numbers, and if an environment changes the working directory."""
    flags = ["--env-id", "test_resume:make_wandering"]
    assert command(*flags, "--run-dir", run_dir, prepare=lambda: os.chdir(tmp_path)).code == 0
    assert resume(run_dir, "--total-timesteps", 700, prepare=lambda: os.chdir(tmp_path)).code == 0
    assert checkpoint(tmp_path / run_dir)["global_step"] == 700
    assert (tmp_path / "elsewhere").exists() and not (tmp_path / "elsewhere" / run_dir).exists()


def limit(size):
    """Files of this process may not grow beyond a size, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))


@pytest.mark.parametrize("first", [True, False])
def test_a_full_disk(tmp_path, finished, first):
    """Before the first checkpoint, of which then no word is said, and before the last."""
    size = (finished / "checkpoint.pt").stat().st_size
    result = command("--run-dir", tmp_path / "run", prepare=lambda: limit(size / 2 if first else size - 2000))
    assert result.code == 1 and f"cannot write {tmp_path}" in result.err and result.err.count("\n") == 1
    assert "resume" not in result.err + result.out.replace("results", "")
    assert (tmp_path / "run" / "checkpoint.pt").exists() != first
    if not first:
        assert 0 < checkpoint(tmp_path / "run")["global_step"] < 600
        assert resume(tmp_path / "run").code == 0 and equal(finished, tmp_path / "run")


def test_eval_only(copied, capsys):
    before = snapshot(copied)
    assert qmp_sac.main(["--resume", str(copied), "--eval-only"]) is None
    out = capsys.readouterr().out
    assert "step 600, own\n" in out and "step 600, mixture\n" in out
    after = snapshot(copied)
    assert after.pop("final_evaluation.csv") and after == before
    final, last = rows(copied, "final_evaluation"), rows(copied)[-N:]
    assert final["acting"].tolist() == ["own"] * N + ["mixture"] * N
    measured = ["global_step", "acting", "task", "success_rate", "episodic_return", "episodic_length"]
    pd.testing.assert_frame_equal(final[:N][measured], last[measured].reset_index(drop=True))
    assert final["episodic_return"][:N].tolist() != final["episodic_return"][N:].tolist()
    qmp_sac.main(["--resume", str(copied), "--eval-only", "--eval-episodes", "2", "--capture-video"])
    assert len(rows(copied, "final_evaluation")) == 2 * N
    assert {path.name for path in (copied / "videos").iterdir()} == {"own-600.mp4", "mixture-600.mp4"}


def test_wandb_goes_on_with_the_same_run(tmp_path, wandb_offline):
    import wandb

    train("qmp_sac", tmp_path / "run", "--track --wandb-project-name test --wandb-entity nobody --total-timesteps 200")
    qmp_sac.main(["--resume", str(tmp_path / "run"), "--track", "--total-timesteps", "300"])
    wandb.finish()
    wandb.teardown()  # now all is written
    logs = [*tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert {log.name for log in logs} == {f"run-{checkpoint(tmp_path / 'run')['wandb_id']}.wandb"}
    assert all(b"PointReach-v0" in log.read_bytes() for log in logs)  # its arguments


def test_a_refusal_of_wandb_is_one_line(tmp_path, monkeypatch):
    import wandb

    def refuse(**_):
        raise wandb.errors.CommError("no such entity")

    monkeypatch.setattr(wandb, "init", refuse)
    result = command("--run-dir", tmp_path / "run", "--track")
    assert result.code == 2
    assert result.err == "qmp_sac.py: error: --track: no such entity (WANDB_MODE=offline needs no account)\n"
    assert command("--run-dir", tmp_path / "run").code == 0  # the folder has no checkpoint yet, and may be taken again


BAD_FLAGS = {  # of qmp_sac.py, or of the script that is named first
    "--batch-size 0": "--batch-size must be above 0",
    "--gamma nan": "--gamma must be at least 0, up to 1",
    "--switch-samples -1": "--switch-samples must be at least 0",
    "--own-policy-prob 2": "--own-policy-prob must be at least 0, up to 1",
    "--policy-lr inf": "--policy-lr must be above 0",
    "--seed 99999999999999999999": "--seed must be at least 0",
    "--hidden-sizes 16 0": "--hidden-sizes must be above 0",
    "--total-timesteps 1.5": "--total-timesteps",
    "--total-timesteps 80": "--learning-starts leaves no training",
    "--no-qmp --switch-samples 1": "--switch-samples means nothing with --no-qmp",
    "--eval-only": "--eval-only needs --resume",
    "--run-dir x --resume y": "--run-dir is of a new run",
    "--run-dir a\x07b": "the folder's name cannot be printed",
    "--run-dir a\udcffb": "the folder's name cannot be printed",
    "--batch-sise 3": "--batch-size",
    "--switch-rule argmx": "argmax",
    "qmp_mtsac --fully-shared": "--fully-shared has one policy",
    "qmp_dnc --kl-coef -1": "--kl-coef must be at least 0",
    "qmp_dnc --distill-steps 0": "--distill-steps must be above 0",
    "qmp_dnc --distill-period -1": "--distill-period must be at least 0",
    "qmp_uds --sharing-quantile 1.1": "--sharing-quantile must be at least 0, up to 1",
    "qmp_uds --min-reward=-inf": "--min-reward must be a finite number",
    "qmp_uds --min-reward nan": "--min-reward must be a finite number",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(tmp_path, capsys, flags):
    script, *words = flags.split() if flags.startswith("qmp") else ("qmp_sac", *flags.split())
    with pytest.raises(SystemExit) as stop:
        import_module(script).main([*SHORT, "--run-dir", str(tmp_path / "run"), *words])
    assert stop.value.code == 2 and BAD_FLAGS[flags] in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


BAD_INPUT = {
    "--run-dir {tmp}/run --buffer-size 1e12 --total-timesteps 1e15": "; choose a smaller --buffer-size",
    "--env-id PointReech-v0": "did you mean 'PointReach-v0'",
    "--env-id test_resume:nothing": "the module has no function 'nothing'",
    "--run-dir {finished}": "exists; choose another --run-dir, or go on with --resume",
    "--run-dir {finished}/args.json/run": "Not a directory",
    "--resume {tmp}/none": "no checkpoint of qmp_sac.py, or a broken one, in {tmp}/none",
    "--resume {finished} --hidden-sizes 16": "hidden_sizes of this run is (16, 16) and cannot change",
    "--resume {finished} --env-id MetaWorldMT10-v3": "env_id of this run is PointReach-v0",
    "--resume {finished} --seed 2": "seed of this run is 1",
    "--resume {finished} --no-qmp": "qmp of this run is True",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input(tmp_path, finished, flags):
    before = snapshot(finished)
    places = {"finished": finished, "tmp": tmp_path}
    new = [] if "run-dir" in flags or "--resume" in flags else [*SHORT, "--run-dir", tmp_path / "run"]
    result = command(*new, *flags.format(**places).split(), short=False)
    assert result.code == 2 and BAD_INPUT[flags].format(**places) in result.err, result.err
    assert result.err.startswith("qmp_sac.py: error: ") and result.err.count("\n") == 1
    assert snapshot(finished) == before and not list(tmp_path.iterdir())


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


@pytest.mark.parametrize("kind", ["cut off", "empty", "foreign", "malicious", "other script", "other version"])
def test_a_bad_checkpoint_is_refused(copied, monkeypatch, kind):
    path, state = copied / "checkpoint.pt", checkpoint(copied)
    content = path.read_bytes()
    if kind in ("cut off", "empty", "malicious"):
        bad = {"cut off": content[: len(content) // 2], "malicious": pickle.dumps(Malice())}
        path.write_bytes(bad.get(kind, b""))
    else:
        args = state.pop("qmp_sac.py")
        more = {"other script": {"qmp_uds.py": args}, "other version": {"qmp_sac.py": args | {"colour": "red"}}}
        torch.save({"weights": torch.zeros(3)} if kind == "foreign" else state | more[kind], path)
    monkeypatch.chdir(copied.parent)
    before = snapshot(copied)
    for flags in ([], ["--eval-only"]):
        result = resume(copied, *flags)
        assert result.code == 2 and result.err.count("\n") == 1
        assert result.err == f"qmp_sac.py: error: no checkpoint of qmp_sac.py, or a broken one, in {copied}\n"
    assert snapshot(copied) == before and not Path("malice").exists()


def test_evaluations_that_are_missing(copied):
    """Are not made up."""
    (copied / "evaluations.csv").unlink()
    result = resume(copied, "--total-timesteps", 700)
    assert result.code == 1 and "evaluations.csv" in result.err and result.err.count("\n") == 1
    assert not (copied / "evaluations.csv").exists()
