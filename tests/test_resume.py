"""Runs that are killed and resumed equal the undisturbed one to the last bit; bad input is told."""

import functools
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
            "--env-id MetaWorld:reach-v3,push-v3 --total-timesteps 300 --checkpoint-frequency 100",
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
        prepare = functools.partial(at, count, MultiTaskEnv, "step", before=die)
        code, out = command(script, *words, prepare=prepare)
        assert code == KILLED, out
        steps.append(checkpoint(cut)["global_step"])
        words = ["--resume", cut]
    code, out = command(script, *words)
    assert code == 0 and "Warning: " not in out.replace("Warning: episodes have up to", "")
    assert 0 < steps[0] <= steps[1] < checkpoint(whole)["global_step"]
    assert same_runs(whole, cut)


def half_a_checkpoint(state, path):
    torch.save(state, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


def half_of_the_evaluations(path, content):
    path.write_bytes(content[:100])
    die()


KILLS = [  # in the order of a run's functions, and the step of the checkpoint that they leave
    (lambda: at(1, torch, "save", before=half_a_checkpoint), None),
    (lambda: at(1, os, "replace", after=die), 0),
    (lambda: at(90, torch.optim.Adam, "step", before=die), 200),
    (lambda: at(2, Path, "write_bytes", before=half_of_the_evaluations), 200),
    (lambda: at(2, os, "replace", before=die), 200),
    (lambda: at(2, os, "replace", after=die), 200),
    (lambda: at(1, torch, "save", before=half_a_checkpoint), 200),
    (lambda: at(3, os, "replace", before=die), 200),  # of the checkpoint
    (lambda: at(3, os, "replace", after=die), 400),
    (lambda: at(1, torch, "save", before=die), 400),
]


def test_killed_at_every_kind_of_moment(tmp_path, finished):
    """One run, killed again and again, from its very first checkpoint on."""
    run_dir = tmp_path / "run"
    words = [*SHORT, "--run-dir", run_dir]
    for number, (prepare, step) in enumerate(KILLS):
        code, out = command("qmp_sac", *words, prepare=prepare)
        assert code == KILLED, (number, out)
        if step is None:  # without a checkpoint the folder is of no use
            error = f"qmp_sac.py: error: {run_dir} has no checkpoint.pt to resume from\n"
            assert command("qmp_sac", "--resume", run_dir) == (2, error)
            shutil.rmtree(run_dir)
        else:
            assert checkpoint(run_dir)["global_step"] == step, number
            words = ["--resume", run_dir]
    assert command("qmp_sac", *words)[0] == 0
    assert same_runs(finished, run_dir)
    # In TensorBoard nothing comes twice, though it was written after the last checkpoint.
    steps = {tag: [event.step for event in events] for tag, events in scalars(run_dir).items()}
    assert steps["eval/success_rate"] == [300, 600]
    assert steps["losses/qf1_loss"] == [100 * N]  # in every hundredth iteration
    assert all(len(x) == len({*x}) for x in steps.values())


def test_a_longer_training_goes_on(tmp_path):
    """To the steps of a run that was as long from the start."""
    train("qmp_sac", tmp_path / "whole", "--eval-frequency 200")
    train("qmp_sac", tmp_path / "run", "--eval-frequency 200 --total-timesteps 400")
    qmp_sac.main(["--resume", str(tmp_path / "run"), "--total-timesteps", "600"])
    qmp_sac.main(["--resume", str(tmp_path / "run")])  # there is nothing left to do
    assert same_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("change", ["removed", "half a row less", "half a row more"])
def test_evaluations_that_someone_touched(copied, capsys, change):
    """The file is repaired, with a warning unless only text after the checkpoint was cut off."""
    path = copied / "evaluations.csv"
    whole = path.read_text()
    touched = {"half a row less": whole[:-20], "half a row more": whole + "700,own"}
    path.unlink()
    if change in touched:
        path.write_text(touched[change])
    qmp_sac.main(["--resume", str(copied), "--total-timesteps", "700"])
    is_told = f"Warning: {path} was changed" in capsys.readouterr().out
    assert is_told == (change != "half a row more")
    assert path.read_text().startswith(whole)
    assert rows(copied)["global_step"].tolist() == [300] * N + [600] * N + [700] * N


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


@pytest.mark.parametrize(
    "count, words",
    [
        (150, "a non-finite action in task corner-north-east"),
        (190, "a weight is not finite at step 400"),  # before it can act
    ],
)
def test_a_broken_weight_keeps_the_last_checkpoint(tmp_path, count, words):
    def spoil(optimizer):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    prepare = functools.partial(at, count, torch.optim.Adam, "step", after=spoil)
    code, out = command("qmp_sac", *SHORT, "--run-dir", tmp_path / "run", prepare=prepare)
    assert code == 1 and words in out.splitlines()[-1]
    state = checkpoint(tmp_path / "run")
    assert state["global_step"] == 200
    assert all(value.isfinite().all() for value in state["agent"].values())


def test_default_names_of_folders(tmp_path, monkeypatch):
    """They tell QMP from its base method, and have no colon."""
    monkeypatch.chdir(tmp_path)
    flags = "--total-timesteps 100 --no-qmp --env-id helpers:make_drift"
    qmp_sac.main([*SHORT, *flags.split()])
    (path,) = (tmp_path / "runs").iterdir()
    assert path.name.rpartition("__")[0] == "helpers-make_drift__qmp_sac-no-qmp__1"


# Bad input

BAD_INPUT = {
    "qmp_sac --batch-size 0": "--batch-size must be at least 1",
    "qmp_sac --gamma nan": "--gamma must be between 0 and 1",
    "qmp_sac --switch-samples -1": "--switch-samples must be at least 0",
    "qmp_sac --policy-lr inf": "--policy-lr must be above 0",
    "qmp_sac --seed 99999999999999999999": "--seed must be between 0 and",
    "qmp_sac --hidden-sizes 16 0": "--hidden-sizes must be at least 1",
    "qmp_sac --total-timesteps 80": "--learning-starts 80 must be below --total-timesteps 80",
    "qmp_sac --no-qmp --switch-samples 1": "--switch-samples has no meaning with --no-qmp",
    "qmp_sac --switch-entropy": "--switch-entropy needs --switch-samples",
    "qmp_sac --eval-frequency 0": "--eval-frequency must be at least 1",
    "qmp_mtsac --fully-shared": "--fully-shared has one policy",
    "qmp_dnc --kl-coef -1": "--kl-coef must be at least 0",
    "qmp_dnc --distill-steps 0": "--distill-steps must be at least 1",
    "qmp_dnc --distill-period -1": "--distill-period must be at least 0",
    "qmp_uds --sharing-quantile 1.1": "--sharing-quantile must be between 0 and 1",
    "qmp_uds --min-reward=-inf": "--min-reward must be finite",
    "qmp_sac --run-dir {finished}": "exists; choose another --run-dir, or --resume it",
    "qmp_sac --resume {finished} --hidden-sizes 16": "--hidden-sizes of this run is (16, 16)",
    "qmp_sac --resume {finished} --no-qmp": "--qmp of this run is True",
    "qmp_sac --resume {finished} --total-timesteps 500": "500 is below the 600 of this run",
}


def refuse(script, words, expected):
    with pytest.raises(envs.gym.error.Error) as caught:
        import_module(script).main(words)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", BAD_INPUT)
def test_bad_input_is_told_in_one_line(tmp_path, finished, flags):
    before = snapshot(finished)
    script, *words = flags.format(finished=finished).split()
    if "--resume" not in words:
        words = [*SHORT, "--run-dir", str(tmp_path / "run"), *words]
    refuse(script, words, BAD_INPUT[flags])
    assert snapshot(finished) == before and not list(tmp_path.iterdir())


OTHER_RUNS = {
    "is a run of qmp_uds.py": lambda state: state.update(script="qmp_uds"),
    "is of a version of qmp_sac.py with other colour": lambda x: x["args"].update(colour="red"),
    "the tasks of this run are a, b": lambda state: state.update(tasks=("a", "b")),
}


@pytest.mark.parametrize("reason", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused(copied, reason):
    state = checkpoint(copied)
    OTHER_RUNS[reason](state)
    torch.save(state, copied / "checkpoint.pt")
    before = snapshot(copied)
    refuse("qmp_sac", ["--resume", str(copied)], reason)
    assert snapshot(copied) == before


class Malice:
    def __reduce__(self):
        return os.mkdir, ("malice",)


def test_a_checkpoint_runs_no_code(copied, monkeypatch):
    torch.save(Malice(), copied / "checkpoint.pt")
    monkeypatch.chdir(copied)
    with pytest.raises(pickle.UnpicklingError):
        qmp_sac.main(["--resume", str(copied)])
    assert not Path("malice").exists()
