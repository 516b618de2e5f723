"""Runs that are killed and resumed equal the undisturbed one to the last bit; bad input is told."""

import io
import os
import pickle
import shutil
import signal
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import SHORT, N, at, checkpoint, command, die, rows, same_runs, scalars, train

import envs
import qmp_sac
from envs.multi_task import MultiTaskEnv

KILLED = -signal.SIGKILL


def resume(run_dir, *flags, script="qmp_sac", prepare=None):
    return command(script, "--resume", run_dir, *flags, prepare=prepare)


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
        (
            "qmp_sac",
            "--switch-samples 2 --switch-entropy --own-policy-prob 0.5 --switch-period 7 "
            "--buffer-size 60 --eval-mixture --checkpoint-frequency 90",
        ),
        ("qmp_mtsac", "--pcgrad --switch-rule uniform"),
        ("qmp_dnc", "--kl-coef 0.1 --distill-period 200 --distill-steps 3"),
        ("qmp_uds", "--sharing-quantile 0.5"),
        ("qmp_sac", "--env-id MultistageReacher-v0 --vectorization async --eval-frequency 600"),
        (
            "qmp_sac",
            "--env-id MetaWorld:reach-v3,drawer-open-v3 --total-timesteps 300 "
            "--checkpoint-frequency 100",
        ),
    ],
)
def test_a_killed_run_is_resumed_exactly(tmp_path, script, flags):
    """By SIGKILL, at two moments; no process is left behind."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(script, whole, flags)
    agent = checkpoint(whole)["agent"]
    iterations = checkpoint(whole)["global_step"] // len(agent["log_alpha"])
    words, steps = [*SHORT, *flags.split(), "--run-dir", cut], []
    for count in (iterations // 2 + 1, iterations // 3):  # the second counts from a checkpoint
        code, out = command(
            script, *words, prepare=lambda n=count: at(n, MultiTaskEnv, "step", die_in)
        )
        assert code == KILLED, out
        steps.append(checkpoint(cut)["global_step"])
        words = ["--resume", cut]
    code, out = command(script, *words)
    assert code == 0 and "Warning: " not in out.replace("Warning: episodes have up to", "")
    assert 0 < steps[0] <= steps[1] < checkpoint(whole)["global_step"]
    assert same_runs(whole, cut)


def die_in(*_):
    die()


def half_a_checkpoint(state, path):
    whole = io.BytesIO()
    torch.save(state, whole)
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    die()


def half_of_the_evaluations(path, content):
    with open(path, "wb") as file:
        file.write(content[:100])
    die()


KILLS = [  # in the order of a run's functions, and the step of the checkpoint that they leave
    (lambda: at(1, torch, "save", before=half_a_checkpoint), None),
    (lambda: at(1, os, "replace", after=die_in), 0),
    (lambda: at(90, torch.optim.Adam, "step", before=die_in), 200),
    (lambda: at(2, Path, "write_bytes", before=half_of_the_evaluations), 200),
    (lambda: at(2, os, "replace", before=die_in), 200),
    (lambda: at(2, os, "replace", after=die_in), 200),
    (lambda: at(1, torch, "save", before=half_a_checkpoint), 200),
    (lambda: at(3, os, "replace", before=die_in), 200),  # of the checkpoint
    (lambda: at(3, os, "replace", after=die_in), 400),
]


def test_killed_at_every_kind_of_moment(tmp_path, finished):
    """One run, killed again and again, from its very first checkpoint on."""
    run_dir = tmp_path / "run"
    words = [*SHORT, "--run-dir", run_dir]
    for number, (prepare, step) in enumerate(KILLS):
        code, out = command("qmp_sac", *words, prepare=prepare)
        assert code == KILLED, (number, out)
        if step is None:  # without a checkpoint the folder is of no use
            assert not (run_dir / "checkpoint.pt").exists()
            assert "has no checkpoint.pt" in resume(run_dir)[1]
            shutil.rmtree(run_dir)
        else:
            assert checkpoint(run_dir)["global_step"] == step, number
            words = ["--resume", run_dir]
    assert resume(run_dir)[0] == 0
    assert same_runs(finished, run_dir)


def test_a_longer_training_goes_on(tmp_path):
    """To the steps of a run that was as long from the start."""
    train("qmp_sac", tmp_path / "whole", "--eval-frequency 200")
    train("qmp_sac", tmp_path / "run", "--eval-frequency 200 --total-timesteps 400")
    qmp_sac.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "600"])
    assert same_runs(tmp_path / "whole", tmp_path / "run")
    before = (tmp_path / "run" / "evaluations.csv").read_bytes()
    qmp_sac.main(["--resume", str(tmp_path / "run")])  # there is nothing left to do
    assert (tmp_path / "run" / "evaluations.csv").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        None,
        lambda text: "".join(text.splitlines(keepends=True)[:-3]),
        lambda text: text[:-20],  # half a row is left
        lambda text: text + "700,own,corner",
        lambda text: "".join(f"{line},mine\n" for line in text.splitlines()),
    ],
)
def test_evaluations_that_someone_touched(copied, change):
    """Shortened, removed, with half a row or a column more: they are made good, and it is said."""
    path = copied / "evaluations.csv"
    whole = path.read_text()
    path.unlink() if change is None else path.write_text(change(whole))
    is_kept = path.exists() and path.read_text().startswith(whole)
    code, out = resume(copied, "--total-timesteps", 700)
    assert code == 0
    assert (f"Warning: {path} was changed" in out) != is_kept
    text = path.read_text()
    assert text.startswith(whole) and b"\0" not in path.read_bytes()
    assert rows(copied)["global_step"].tolist() == [300] * N + [600] * N + [700] * N


def test_tensorboard_goes_on(tmp_path):
    run_dir = tmp_path / "run"
    prepare = lambda: at(4, torch, "save", before=die_in)  # noqa: E731
    assert command("qmp_sac", *SHORT, "--run-dir", run_dir, prepare=prepare)[0] == KILLED
    assert resume(run_dir)[0] == 0
    steps = {tag: [event.step for event in events] for tag, events in scalars(run_dir).items()}
    assert steps["eval/success_rate"] == [300, 600]
    assert steps["losses/qf1_loss"] == [100 * N]  # in every hundredth iteration
    # Nothing comes twice, though it was written after the last checkpoint.
    assert all(len(x) == len({*x}) for x in steps.values())


def test_wandb_goes_on_with_the_same_run(tmp_path, wandb_offline):
    """And leaves none behind that a second run in the same process would log to."""
    flags = "--track --wandb-project-name test --wandb-entity nobody --total-timesteps 100"
    train("qmp_sac", tmp_path / "run", flags)
    assert wandb_offline.run is None
    qmp_sac.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "150"])
    assert wandb_offline.run is None
    wandb_offline.teardown()  # now all is written
    logs = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    wandb_id = checkpoint(tmp_path / "run")["wandb_id"]
    assert len(logs) == 2 and {log.name for log in logs} == {f"run-{wandb_id}.wandb"}
    assert all(b"PointReach-v0" in log.read_bytes() for log in logs)  # its arguments


@pytest.mark.parametrize("script, weight", [("qmp_sac", "net"), ("qmp_mtsac", "trunk")])
def test_a_broken_weight_keeps_the_last_checkpoint(tmp_path, monkeypatch, script, weight):
    save, saved = torch.save, []

    def broken(state, path):
        saved.append(state["global_step"])
        save(state, path)
        if state["global_step"] == 200:
            state["agent"][next(n for n in state["agent"] if f"qf.{weight}" in n)][0] = torch.nan

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(FloatingPointError, match="not finite|non-finite"):
        train(script, tmp_path / "run", "--no-qmp")
    assert saved == [0, 200] and checkpoint(tmp_path / "run")["global_step"] == 200
    values = checkpoint(tmp_path / "run")["agent"].values()
    assert all(value.isfinite().all() for value in values)


def test_broken_policies_are_told_with_the_task(tmp_path):
    def spoil(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    prepare = lambda: at(150, torch.optim.Adam, "step", after=spoil)  # noqa: E731
    code, out = command("qmp_sac", *SHORT, "--run-dir", tmp_path / "run", prepare=prepare)
    assert code == 1 and "a non-finite action in task corner-north-east" in out.splitlines()[-1]
    assert checkpoint(tmp_path / "run")["global_step"] == 200


def make_renamed(render_mode=None):
    """Its tasks' names come from outside."""
    tasks = envs.make_tasks("PointReach2-v0").values()
    return dict(zip(os.environ["NAMES"].split(), tasks, strict=True))


def test_tasks_of_a_run_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("NAMES", "a b")
    train("qmp_sac", tmp_path / "run", "--env-id test_resume:make_renamed --total-timesteps 100")
    monkeypatch.setenv("NAMES", "b a")
    before = snapshot(tmp_path / "run")
    code, out = resume(tmp_path / "run", "--total-timesteps", 800)
    assert code == 2 and out.endswith("error: the tasks of this run are a, b\n")
    assert snapshot(tmp_path / "run") == before


def test_default_names_of_folders(tmp_path, monkeypatch):
    """They tell QMP from its base method, and have no colon."""
    monkeypatch.chdir(tmp_path)
    for flags in (["--no-qmp"], ["--env-id", "helpers:make_drift"]):
        qmp_sac.main([*SHORT, "--total-timesteps", "100", *flags])
    names = sorted(path.name.rpartition("__")[0] for path in (tmp_path / "runs").iterdir())
    assert names == ["PointReach-v0__qmp_sac-no-qmp__1", "helpers-make_drift__qmp_sac__1"]


# Bad input

BAD_FLAGS = {  # of qmp_sac.py, or of the script that is named first
    "--batch-size 0": "--batch-size must be at least 1",
    "--gamma nan": "--gamma must be between 0 and 1",
    "--switch-samples -1": "--switch-samples must be at least 0",
    "--own-policy-prob 2": "--own-policy-prob must be between 0 and 1",
    "--policy-lr inf": "--policy-lr must be above 0",
    "--seed 99999999999999999999": "--seed must be between 0 and",
    "--hidden-sizes 16 0": "--hidden-sizes must be at least 1",
    "--total-timesteps 80": "--learning-starts 80 must be below --total-timesteps 80",
    "--no-qmp --switch-samples 1": "--switch-samples has no meaning with --no-qmp",
    "--switch-entropy": "--switch-entropy needs --switch-samples",
    "--eval-frequency 0": "--eval-frequency must be at least 1",
    "--env-id PointReech-v0": "unknown environment 'PointReech-v0'; known are PointReach-v0",
    "qmp_mtsac --fully-shared": "--fully-shared has one policy",
    "qmp_dnc --kl-coef -1": "--kl-coef must be at least 0",
    "qmp_dnc --distill-steps 0": "--distill-steps must be at least 1",
    "qmp_dnc --distill-period -1": "--distill-period must be at least 0",
    "qmp_uds --sharing-quantile 1.1": "--sharing-quantile must be between 0 and 1",
    "qmp_uds --min-reward=-inf": "--min-reward must be finite",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags(tmp_path, flags):
    script, *words = flags.split() if flags.startswith("qmp") else ("qmp_sac", *flags.split())
    with pytest.raises(envs.gym.error.Error) as caught:
        import_module(script).main([*SHORT, "--run-dir", str(tmp_path / "run"), *words])
    assert BAD_FLAGS[flags] in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", ["--batch-sise 3", "--switch-rule argmx", "--buffer-size 1.5"])
def test_flags_that_tyro_refuses(tmp_path, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        qmp_sac.main([*SHORT, "--run-dir", str(tmp_path / "run"), *flags.split()])
    assert flags.split()[0] in capsys.readouterr().err.replace("\n", " ")


BAD_INPUT = {
    "--run-dir {finished}": "exists; choose another --run-dir, or --resume it",
    "--resume {tmp}/none": "{tmp}/none has no checkpoint.pt to resume from",
    "--resume {finished} --hidden-sizes 16": "--hidden-sizes of this run is (16, 16)",
    "--resume {finished} --seed 2": "--seed of this run is 1",
    "--resume {finished} --no-qmp": "--qmp of this run is True",
    "--resume {finished} --total-timesteps 500": "500 is below the 600 of this run",
    "--resume {finished} --matmul-precision high": "--matmul-precision of this run is highest",
}


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_is_told_in_one_line(tmp_path, finished, flags):
    before = snapshot(finished)
    places = {"finished": finished, "tmp": tmp_path}
    code, out = command("qmp_sac", *flags.format(**places).split())
    assert code == 2 and BAD_INPUT[flags].format(**places) in out
    assert out.startswith("qmp_sac.py: error: ") and out.count("\n") == 1
    assert snapshot(finished) == before and not list(tmp_path.iterdir())


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


@pytest.mark.parametrize("kind", ["other script", "other version", "cut off", "malicious"])
def test_a_bad_checkpoint_is_refused(copied, monkeypatch, kind):
    """With its reason: in one line, or as PyTorch tells it."""
    path, state = copied / "checkpoint.pt", checkpoint(copied)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:20_000])
    elif kind == "malicious":
        path.write_bytes(pickle.dumps(Malice()))
    else:
        args = state["args"] | {"colour": "red"}
        torch.save(
            state | {"script": "qmp_uds"} if "script" in kind else state | {"args": args}, path
        )
    monkeypatch.chdir(copied.parent)
    before = snapshot(copied)
    code, out = resume(copied)
    if kind.startswith("other"):
        word = {"other script": "is a run of qmp_uds.py", "other version": "colour"}[kind]
        assert code == 2 and word in out and out.count("\n") == 1
    else:
        assert code == 1
    assert snapshot(copied) == before and not Path("malice").exists()
