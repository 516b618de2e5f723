"""Whole runs of the script: they learn, log, repeat and refuse."""

import csv
import functools
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import envs
import qmp_sac

ROOT = Path(__file__).parent.parent
SHORT = "--total-timesteps 400 --learning-starts 80 --batch-size 8 --hidden-sizes 16 16 --eval-episodes 1".split()
SHORT += ["--checkpoint-frequency", "1e6"]  # whole episodes


def run(run_dir, *flags):
    """Train for a moment; returns what `train` returned."""
    result = []
    train = qmp_sac.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qmp_sac, "train", lambda *args: result.append(train(*args)))
        qmp_sac.main([*SHORT, "--run-dir", str(run_dir), *flags])
    return result[0]


def rows(run_dir, name):
    with open(run_dir / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(result):
    return [*result.actor.state_dict().values(), *result.qf.state_dict().values(), result.log_alpha]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_a_run_learns_and_logs(tmp_path, monkeypatch):
    scalars, updates = {}, []
    update_target = qmp_sac.update_target
    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda self, tag, value, step: scalars.update({tag: value}))
    monkeypatch.setattr(qmp_sac, "update_target", lambda *args: updates.append(update_target(*args)))
    torch.manual_seed(1)
    actor, qf = (cls(4, 2, 2, (16, 16)) for cls in (qmp_sac.Actor, qmp_sac.Critic))  # as train makes them for seed 1
    flags = ["--seed", "1", "--train-frequency", "2", "--gradient-steps", "3", "--total-timesteps", "1e3"]
    result = run(tmp_path / "run", *flags, "--eval-frequency", "500")

    turns = range(80 // 4 + 1, 1000 // 4 + 1)
    assert len(updates) == 3 * sum(turn % 2 == 0 for turn in turns)
    for before, after in zip((actor, qf), result[:2], strict=True):
        for a, b in zip(before.parameters(), after.parameters(), strict=True):
            assert torch.isfinite(b).all()
            assert all(not torch.equal(x, y) for x, y in zip(a, b, strict=True))  # every slice of every layer moved
    assert (result.log_alpha != np.log(0.2)).all()

    losses = {tag: value for tag, value in scalars.items() if tag.startswith("losses/")}
    names = {"qf1_values", "qf2_values", "qf1_loss", "qf2_loss", "actor_loss", "entropy", "alpha", "alpha_loss"}
    assert {tag.split("/")[1] for tag in losses} == names and len(losses) == len(names) * (1 + 4)
    assert np.isfinite([*losses.values()]).all()
    assert scalars["charts/SPS"] > 0 and "charts/episodic_return/reach-up" in scalars

    record = json.loads((tmp_path / "run" / "args.json").read_text())
    assert record["args"]["total_timesteps"] == 1000 and record["tasks"] == list(envs.TASKS["PointReach-v0"])
    assert record["versions"]["torch"] == torch.__version__
    evaluations = rows(tmp_path / "run", "evaluations")
    assert [*evaluations[0]] == ["global_step", "task", "success_rate", "episodic_return", "episodic_length"]
    assert [(row["global_step"], row["task"]) for row in evaluations] == [
        (step, task) for step in ("500", "1000") for task in envs.TASKS["PointReach-v0"]
    ]
    assert {row["episodic_length"] for row in evaluations} == {"50.0"}
    mixture = rows(tmp_path / "run", "mixture")
    assert len(mixture) == 2 * 4 * 4
    for i in range(0, len(mixture), 4):
        assert sum(float(row["probability"]) for row in mixture[i : i + 4]) == pytest.approx(1)
    assert any(row["task"] != row["policy"] and float(row["probability"]) > 0 for row in mixture)


def test_same_command_same_results(tmp_path):
    first, second, other = (run(tmp_path / name, "--seed", seed) for name, seed in (("a", "3"), ("b", "3"), ("c", "4")))
    assert same(first, second) and not same(first, other)
    for name in ("evaluations.csv", "mixture.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_qmp_off_is_the_base_method(tmp_path):
    base = run(tmp_path / "base", "--no-qmp")
    skipped = run(tmp_path / "skipped", "--qmp", "--own-policy-prob", "1")
    mixed = run(tmp_path / "mixed", "--qmp")
    assert same(base, skipped) and not same(base, mixed)
    for name in ("evaluations.csv", "mixture.csv"):
        assert (tmp_path / "base" / name).read_bytes() == (tmp_path / "skipped" / name).read_bytes()
    assert {(row["task"] == row["policy"], row["probability"]) for row in rows(tmp_path / "base", "mixture")} == {
        (True, "1.0"),
        (False, "0.0"),
    }


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """What a run with some flags has learned; each is run once."""
    return functools.cache(lambda flags: run(tmp_path_factory.mktemp("flags") / "run", *flags.split()))


@pytest.mark.parametrize(
    "flag",
    [
        "--switch-samples 0",
        "--switch-samples 3",
        "--no-switch-entropy",
        "--switch-rule uniform",
        "--switch-rule softmax",
        "--switch-rule softmax --switch-temperature 0.01",
        "--switch-period 1",
        "--own-policy-prob 0.7",
        "--no-autotune",
        "--no-autotune --alpha 0.1",
        "--gamma 0.9",
        "--tau 0.1",
        "--policy-lr 1e-3",
        "--q-lr 1e-3",
        "--reward-scale 2",
        "--buffer-size 50",
        "--batch-size 9",
        "--learning-starts 100",
        "--train-frequency 2",
        "--gradient-steps 2",
    ],
)
def test_a_flag_changes_what_is_learned(learned, flag):
    """Each by itself, or added to the flag that it belongs to."""
    plain, flagged = learned(flag.rpartition("--")[0].strip()), learned(flag)
    assert all(torch.isfinite(x).all() for x in weights(flagged))
    assert not same(plain, flagged)
    if "--no-autotune" in flag:
        assert flagged.log_alpha.exp().tolist() == pytest.approx([0.1 if "--alpha" in flag else 0.2] * 4)


@pytest.mark.parametrize("flag", ["--vectorization async", "--no-cuda", "--no-torch-deterministic"])
def test_a_flag_changes_nothing_here(learned, flag):
    """Without a GPU, that is, for the last two."""
    assert ("async" not in flag and torch.cuda.is_available()) or same(learned(""), learned(flag))


def test_sizes_threads_and_name(tmp_path, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.chdir(tmp_path)
    qmp_sac.main([*SHORT, *"--hidden-sizes 1e1 --num-threads 2 --exp-name short".split()])
    assert threads == [2]
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("PointReach-v0__short__1__")
    state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert state["agent"]["actor"]["net.0.weight"].shape == (4, 2, 10)


def test_switch_period_keeps_the_policy(tmp_path, monkeypatch):
    chosen = []
    select_actions = qmp_sac.select_actions

    def record(*args):
        result = select_actions(*args)
        chosen.append(result[1].tolist())
        return result

    monkeypatch.setattr(qmp_sac, "select_actions", record)
    run(tmp_path / "run", "--switch-period", "20", "--learning-starts", "0", "--total-timesteps", "800")
    # Episodes have 50 steps: choices at their steps 0, 20 and 40.
    starts = {step for step in range(200) if step % 50 in (0, 20, 40)}
    changes = {step for step in range(1, 200) if chosen[step] != chosen[step - 1]}
    assert changes and changes <= starts


def test_ends_of_episodes(tmp_path, monkeypatch):
    """Only termination is stored as such, and every transition ends in its own task's own last observation."""
    stored = []
    monkeypatch.setattr(qmp_sac.ReplayBuffer, "add", lambda self, *transition: stored.append(transition))
    flags = "--env-id test_envs:make_drift --total-timesteps 180 --learning-starts 179 --train-frequency 100"
    run(tmp_path / "run", *flags.split())
    _, _, rewards, next_obs, terminations = (np.stack(field) for field in zip(*stored, strict=True))
    for task, length in enumerate((2, 3, 4)):
        steps = 1 + np.arange(60) % length
        np.testing.assert_array_equal(next_obs[:, task, 0], 100 * task + steps)
        np.testing.assert_array_equal(terminations[:, task], (steps == length) & (task == 0))
    evaluations = rows(tmp_path / "run", "evaluations")
    assert [*evaluations[0]][-1] == "distance"
    last = [[float(row[key]) for key in ("success_rate", "episodic_length", "distance")] for row in evaluations[-3:]]
    assert last == [[1, 2, 2], [1, 3, 3], [1, 4, 4]]  # success and distance of the very last step count


def test_video(tmp_path):
    run(tmp_path / "run", "--capture-video", "--eval-frequency", "200")
    videos = sorted(path.name for path in (tmp_path / "run" / "videos").glob("*.mp4"))
    assert videos == ["step-200-episode-0.mp4", "step-400-episode-0.mp4"]
    assert all((tmp_path / "run" / "videos" / name).stat().st_size > 1000 for name in videos)


def test_wandb_offline(tmp_path, wandb_offline):
    run(tmp_path / "run", "--track", "--wandb-project-name", "test", "--wandb-entity", "nobody")
    import wandb

    wandb.teardown()  # waits until all is written
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"PointReach-v0" in log.read_bytes()  # the run's arguments


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--env-id PointReech-v0", "did you mean 'PointReach-v0'"),
        ("--env-id test_envs:make_failing", "RuntimeError: no such robot"),
    ],
)
def test_bad_input(tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run", *flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_never_overwritten(tmp_path, capsys):
    run(tmp_path / "run")
    before = (tmp_path / "run" / "evaluations.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "run")
    assert stop.value.code == 2 and "already" in capsys.readouterr().err
    assert (tmp_path / "run" / "evaluations.csv").read_bytes() == before


COMMANDS = re.findall(r"^python qmp_sac\.py[^#\n]*", (ROOT / "README.md").read_text(), re.M)


@pytest.mark.parametrize("command", dict.fromkeys(command.strip() for command in COMMANDS))
def test_readme_commands(tmp_path, monkeypatch, command):
    """As written, but short. Commands for Meta-World's fifty tasks would take too long even so; ten stand for them."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(# my_tasks\.py\n.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    (tmp_path / "my_tasks.py").write_text(example)
    flags = shlex.split(command)[2:]
    if "--compile" in flags and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    if "--help" in flags:
        with pytest.raises(SystemExit) as stop:
            qmp_sac.main(flags)
        assert stop.value.code == 0
        return
    flags = ["MetaWorldMT10-v3" if flag == "MetaWorldMT50-v3" else flag for flag in flags]
    if {"--resume", "--eval-only"} & set(flags):
        qmp_sac.main(["--run-dir", "runs/first", *SHORT])
        qmp_sac.main([*flags, "--total-timesteps", "500"])
        return
    qmp_sac.main([*flags, *SHORT, "--eval-frequency", "400"])
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert int(rows(run_dir, "evaluations")[-1]["global_step"]) >= 400


def test_readme_shows_the_script():
    """The equation's lines in the README are the script's."""
    readme, script = ((ROOT / name).read_text() for name in ("README.md", "qmp_sac.py"))
    snippet = re.search(r"```python\n# qmp_sac\.py, q_switch\n(.*?)```", readme, re.S)[1]
    assert snippet.count("\n") > 10
    assert snippet in re.sub("^    ", "", script, flags=re.M)


def test_tensorboard_has_the_numbers_of_the_csv(tmp_path):
    run(tmp_path / "run", "--env-id", "test_envs:make_drift", "--alpha", "1", "--total-timesteps", "300")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    last = {row["task"]: row for row in rows(tmp_path / "run", "evaluations")}
    for task, row in last.items():
        for name in ("success_rate", "episodic_return", "episodic_length", "distance"):
            assert events.Scalars(f"eval/{name}/{task}")[-1].value == pytest.approx(float(row[name]))
    for row in rows(tmp_path / "run", "mixture")[-9:]:
        value = events.Scalars(f"switch/{row['task']}/{row['policy']}")[-1].value
        assert value == pytest.approx(float(row["probability"]))


def test_negative_metrics_survive():
    vec = envs.make_vec("test_envs:make_drift", 1)
    actor = qmp_sac.Actor(3, 1, 1, (4,))
    for env in vec.unwrapped.envs:
        env.unwrapped.sign = -1
    act = functools.partial(qmp_sac.own_policies, actor)
    evaluation = qmp_sac.evaluate(act, vec, ["success", "distance"], 2, seed=1)
    assert evaluation[:, 3].tolist() == [-1, -1, -1]  # the highest of -1, -2, ...
    assert evaluation[:, :3].tolist() == [[1, 2, 2], [1, 3, 3], [1, 4, 4]]


def test_plots(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    import plot

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        plot.main([])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    run(tmp_path / "runs" / "old")
    run(tmp_path / "runs" / "new")
    (tmp_path / "runs" / "just begun").mkdir()
    (tmp_path / "runs" / "just begun" / "mixture.csv").write_text("global_step,task,policy,probability\n")
    plot.main([])
    assert (tmp_path / "runs" / "new" / "plots.png").stat().st_size > 10_000
    assert "runs/new/plots.png" in capsys.readouterr().out
    plot.main(["runs/old"])
    assert (tmp_path / "runs" / "old" / "plots.png").exists()
    mixture = tmp_path / "runs" / "new" / "mixture.csv"
    mixture.write_text("\n".join(mixture.read_text().splitlines()[:4]))  # in the midst of its first rows
    with pytest.raises(SystemExit) as stop:
        plot.main(["runs/new"])
    assert stop.value.code == 2 and "no run with a mixture in runs/new" in capsys.readouterr().err


def test_picture(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    import picture

    monkeypatch.setattr(picture, "STAGES", {"early": 2_400, "late": 4_400})
    monkeypatch.setattr(picture, "EPISODES", 1)
    picture.main(tmp_path / "qmp.png")
    assert (tmp_path / "qmp.png").stat().st_size > 10_000
