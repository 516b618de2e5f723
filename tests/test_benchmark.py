"""The matrix of runs, and the tables and figures made of it."""

import csv
import importlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import plot
import pytest
import run

ROOT = Path(__file__).parent.parent
TINY = "--total-timesteps 400 --learning-starts 100 --eval-episodes 1 --eval-frequency 200 --hidden-sizes 8"


@pytest.mark.parametrize("env_id, budget", itertools.product(run.SETTINGS, ("laptop", "paper")))
def test_commands_are_accepted(env_id, budget):
    for script, method in itertools.product(run.Script.__args__, run.METHODS):
        module = importlib.import_module(script)
        _, file, *flags = run.command(env_id, script, method, 7, budget)
        args = module.parse_args(flags, module.Args())
        module.check_args(args)
        assert (file, args.env_id, args.seed) == (f"{script}.py", env_id, 7)
        assert args.qmp == (method != "base")
    assert module.Args().switch_period == 10  # which is why there is a method for 1, 3 and 30, and none for 10


@pytest.mark.parametrize("env_id", sorted(set(run.SETTINGS) - {"MetaWorldMT50-v3"}))
@pytest.mark.parametrize("script", ["qmp_sac", "qmp_mtsac"])
def test_commands_run(tmp_path, env_id, script):
    """Short, with the learning rates, training frequencies and switches of the paper's commands."""
    _, file, *flags = run.command(env_id, script, "qmp-period-1", 1, "paper")
    steps = "--total-timesteps 120 --learning-starts 60 --batch-size 4 --hidden-sizes 8".split()
    steps += "--eval-episodes 1 --eval-frequency 120".split()
    importlib.import_module(script).main([*flags, *steps, "--run-dir", str(tmp_path / "run")])
    assert plot.read(tmp_path / "run" / "evaluations.csv")[-1]["global_step"] == "120"


def test_matrix(tmp_path, capsys):
    args = run.Args(env_ids=["Maze-v0"], scripts=["qmp_sac"], seeds=[3, 4], runs=tmp_path, dry_run=True)
    runs = run.matrix(args)
    assert [Path(r.folder).name for r in runs] == [
        f"Maze-v0__qmp_sac__{method}__{seed}" for seed in (3, 4) for method in ("base", "qmp")
    ]
    assert {r.total for r in runs} == {2_000_000}
    assert run.main(args) == 0
    assert capsys.readouterr().out.splitlines() == [" ".join(r.command) for r in runs]
    assert not list(tmp_path.iterdir())


DRIVER = """
import run, sys
run.SETTINGS = {"PointReach-v0": run.Setting(paper="", laptop=sys.argv[2])}
run.METHODS = {"qmp": "", "refused": "--gamma 2"}
args = run.Args(scripts=["qmp_sac"], methods=sys.argv[3].split(","), seeds=[1], runs=run.Path(sys.argv[1]), jobs=1)
sys.exit(run.main(args))
"""


def drive(folder, *methods):
    """Run the matrix in a process of its own; returns its exit code, output and errors."""
    command = [sys.executable, "-c", DRIVER, str(folder), TINY, ",".join(methods)]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmark")}
    process = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    return process.returncode, process.stdout, process.stderr


def test_runs_are_finished_resumed_and_failures_listed(tmp_path):
    folder = tmp_path / "laptop" / "PointReach-v0__qmp_sac__qmp__1"
    # A run that was stopped before its end: its first checkpoint, at step 0, is there.
    import qmp_sac

    qmp_sac.main([*TINY.split(), "--seed", "1", "--run-dir", str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(qmp_sac.ReplayBuffer, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        qmp_sac.main([*TINY.split(), "--seed", "1", "--run-dir", str(folder)])
    code, output, errors = drive(tmp_path, "qmp", "refused")
    assert code == 1
    assert "2 runs, 0 finished before" in output
    assert "failed 3 times" in errors and "--gamma must be from 0 to 1" in errors
    assert (folder / "evaluations.csv").read_bytes() == (tmp_path / "whole" / "evaluations.csv").read_bytes()
    assert (folder / "finished").exists()
    assert "--run-dir" not in (folder.parent / f"{folder.name}.log").read_text()  # it was not refused as already there
    before = (folder / "args.json").stat().st_mtime_ns
    code, output, _ = drive(tmp_path, "qmp")
    assert code == 0
    assert "1 runs, 1 finished before" in output
    assert (folder / "args.json").stat().st_mtime_ns == before


def test_a_stopped_run_leaves_a_checkpoint(tmp_path):
    stop = tmp_path / "stop"
    stop.touch()
    args = run.Args(scripts=["qmp_sac"], methods=["qmp"], seeds=[1], runs=tmp_path)
    (planned,) = run.matrix(args)
    assert run.execute(planned, stop) == "stopped"
    assert not planned.finished()


def fake(folder, curve, method, seed, env_id="PointReach-v0"):
    """A run folder as run.py leaves it: mean success curve(t) in ten evaluations of two tasks."""
    run_dir = folder / "laptop" / f"{env_id}__qmp_sac__{method}__{seed}"
    run_dir.mkdir(parents=True)
    rows = []
    for t in range(1, 11):
        for task, sign in (("easy", 1), ("reach-middle-sparse", -1)):
            row = {"global_step": 100 * t, "task": task, "success_rate": curve(t) + sign * 0.25 * (t < 10)}
            rows.append(row | {"episodic_return": -t, "episodic_length": 50})
    plot.write(run_dir / "evaluations.csv", rows)
    shares = [(t, i, j, 0.75 if i == j else 0.25) for t in (100, 1000) for i in range(2) for j in range(2)]
    names = ("global_step", "task", "policy", "probability")
    plot.write(run_dir / "mixture.csv", [dict(zip(names, share, strict=True)) for share in shares])
    versions = dict.fromkeys(("python", "torch", "gymnasium", "mujoco", "metaworld"), "1.0")
    (run_dir / "args.json").write_text(json.dumps({"versions": versions, "git_commit": "abc"}))
    (run_dir / "hours").write_text("0.5\n0.25\n")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results, and a README with markers."""
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    plot.RESULTS.mkdir()
    (tmp_path / "README.md").write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    return tmp_path


def test_collect_draw_and_table(results, capsys):
    runs = results / "runs"
    for seed, last in ((1, 0.5), (2, 1.0), (3, 0.5)):
        fake(runs, lambda t, last=last: last, "qmp", seed)
        fake(runs, lambda t: 0.5, "base", seed)
    plot.main(["--results", "--runs", str(runs)])
    rows = plot.read(plot.RESULTS / "PointReach-v0.csv")
    assert len(rows) == 6 * 20
    assert [row["method"] for row in rows[::60]] == ["base", "qmp"]
    (record,) = plot.select(plot.read(plot.RESULTS / "runs.csv"), method="base", seed="2")
    assert record["hours"] == "0.75" and record["steps"] == "1000" and "--no-qmp" in record["command"]
    text = (results / "README.md").read_text()
    assert text.startswith("before\n<!--") and text.endswith("<!-- end of results -->\nafter\n")
    (line,) = [line for line in text.splitlines() if line.startswith("| `qmp_sac.py`, No-Sharing")]
    assert "| 0.50 [0.50, 0.50] | 0.67 [0.50, 0.83] |" in line
    assert line.endswith("| 0 of 3 | 1 of 3 |")
    for name in ("PointReach-v0.png", "PointReach-v0_mixture.png"):
        assert (plot.RESULTS / name).stat().st_size > 10_000

    # Another sitting, whose folder holds one of these runs again and one more: the CSV keeps what is not replaced.
    more = results / "more"
    fake(more, lambda t: 1.0, "qmp", 1)
    fake(more, lambda t: 1.0, "qmp-period-1", 1)
    plot.main(["--results", "--runs", str(more)])
    text = (results / "README.md").read_text()
    assert "| 0.50 [0.50, 0.50] | 0.83 [0.50, 1.00] |" in text
    assert "| `--switch-period 1` | 1 | 1.00 (1 seed) | 1 of 1 |" in text
    assert text.count("<!-- end of results -->") == 1


def test_curves_end_where_the_shortest_run_does():
    rows = [
        {
            "env": "Maze-v0",
            "script": "qmp_sac",
            "method": "qmp",
            "seed": str(seed),
            "global_step": str(step),
            "x": value,
        }
        for seed, steps in ((1, (10, 20, 30)), (2, (10, 20)))
        for step, value in zip(steps, "123", strict=False)
    ]
    steps, values = plot.curves(rows, "x")
    assert steps.tolist() == [10, 20]
    assert values.tolist() == [[1, 2], [1, 2]]


def test_interval_is_that_of_many_resamples():
    values = np.random.default_rng(1).random((7, 3))
    low, high = plot.interval(values)
    picks = np.random.default_rng(2).integers(7, size=(100_000, 7))
    expected = np.quantile(values[picks].mean(1), (0.025, 0.975), axis=0)
    assert np.allclose((low, high), expected, atol=0.01)
    assert [x.tolist() for x in plot.interval(values[:1])] == [values[0].tolist()] * 2


def test_readme_shows_the_committed_results():
    start, end = "<!-- results -->\n", "<!-- end of results -->"
    shown = (ROOT / "README.md").read_text().partition(start)[2].partition(end)[0]
    assert shown.strip() == plot.tables().strip()
    for env_id in plot.results():
        with open(plot.RESULTS / f"{env_id}.csv", newline="") as file:
            reader = csv.DictReader(file)
            assert reader.fieldnames[:7] == "env script method seed global_step task success_rate".split()
