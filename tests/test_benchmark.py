"""The matrix of runs, the authors' hyper-parameters, and tables and pictures of runs."""

import importlib
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import drawing
import figures
import numpy as np
import pandas as pd
import plot
import pytest
import run
import tyro
from helpers import ROOT

import envs

# The authors split an iteration's gradient steps over separate agents, whose batches and replays of
# 1e6 are their own, and each waits for `min_buffer_size`. A shared network has every gradient step,
# on a batch of all tasks, from one replay.
# In order: steps of the paper, gradient steps per environment step, buffer_batch_size,
# min_buffer_size, learning rate and width, those of shared networks; our episodes of evaluation.
AUTHORS = {
    "MultistageReacher-v0": (2e6, Fraction(1), 32, 10_000, 3e-4, 256, 1e-3, 512, 10),
    "Maze-v0": (12e6, Fraction(1, 6), 256, 3_000, 3e-4, 256, 3e-4, 256, 10),
    "Walker2dMT4-v0": (8e6, Fraction(3, 2), 32, 10_000, 3e-4, 256, 3e-4, 256, 10),
    "MetaWorldCDS-v0": (10e6, Fraction(1, 10), 256, 5_000, 1.5e-3, 256, 1.5e-3, 256, 10),
    "MetaWorldMT10-v3": (40e6, Fraction(1, 10), 2560, 5_000, 1.5e-3, 256, 1.5e-3, 256, 50),
    "MetaWorldMT50-v3": (30e6, Fraction(1, 10), 1280, 1_500, 3e-4, 400, 3e-4, 400, 5),
    "KitchenMT10-v0": (5e6, Fraction(1, 4), 1280, 2_000, 3e-4, 256, 3e-4, 256, 5),
}


# RUNS


def parse(*command):
    """The arguments that a script makes of a command's flags."""
    _, script, *flags = run.command(*command)
    return tyro.cli(importlib.import_module(script.removesuffix(".py")).Args, args=flags)


@pytest.mark.parametrize("script", run.SCRIPTS)
@pytest.mark.parametrize("env_id", AUTHORS)
def test_the_settings_are_the_authors(env_id, script):
    total, steps, batch, minimum, lr, width, shared_lr, shared_width, episodes = AUTHORS[env_id]
    N = len(envs.make_tasks(env_id))
    is_shared = script == "qmp_mtsac"
    if is_shared:
        lr, width = shared_lr, shared_width
    for budget in ("paper", "laptop"):
        args = parse(env_id, script, "qmp", 1, budget)
        # An update of all tasks is one of the shared network, or of N separate ones.
        networks = 1 if is_shared else N
        updates = Fraction(args.gradient_steps, args.train_frequency) * networks
        assert updates / N == steps
        assert args.batch_size == (round(batch / N) if is_shared else batch)
        assert args.learning_starts == (minimum if is_shared else minimum * N)
        assert args.buffer_size == (1e6 / N if is_shared else 1e6)
        assert (args.policy_lr, args.q_lr, set(args.hidden_sizes)) == (lr, lr, {width})
        assert (args.alpha, args.gamma, args.tau, args.autotune) == (1.0, 0.99, 0.005, True)
        assert (args.switch_samples, args.switch_entropy, args.switch_period) == (0, False, 1)
        assert args.own_policy_prob == (0.7 if env_id == "MetaWorldMT10-v3" else 0)
        assert args.eval_episodes == episodes
        assert (args.total_timesteps == total) == (budget == "paper")
        assert parse(env_id, script, "base", 1).own_policy_prob == 0
        assert args.eval_frequency <= 100_000 and args.checkpoint_frequency is None


@pytest.mark.parametrize("name", run.METHODS)
def test_methods_change_the_arguments_that_they_name(name):
    method = run.METHODS[name]
    for script in method.scripts:
        found = vars(parse("Maze-v0", script, name, 1))
        default = vars(parse("Maze-v0", script, "qmp", 1))
        assert found == default | method.arguments
        assert plot.find_method({"script": script} | found, {}) == name
        for key in default.keys() & plot.DEFAULTS.keys():
            assert plot.DEFAULTS[key] == default[key]


def test_prints_commands_of_the_scripts_that_have_the_method(tmp_path, capsys):
    args = run.Args(["a:b"], ["qmp_sac", "qmp_mtsac"], ["fully-shared", "qmp"], [1], print=True)
    assert run.main(args, ["--run-dir", "my run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "python qmp_sac.py --env-id a:b --seed 1 --run-dir 'my run'",
        "python qmp_mtsac.py --env-id a:b --seed 1 --no-qmp --fully-shared --run-dir 'my run'",
        "python qmp_mtsac.py --env-id a:b --seed 1 --run-dir 'my run'",
    ]
    args = run.Args(scripts=["qmp_sac"], methods=["fully-shared"])
    assert run.main(args, []) == 2
    assert capsys.readouterr().err == "run.py: error: qmp_sac has no method fully-shared\n"


PLANNED = """
import os, pathlib, signal, sys
*flags, way, folder = sys.argv[1:]
folder, plan = pathlib.Path(folder), pathlib.Path(__file__).with_name("plan")
word, *rest = plan.read_text().split()
plan.write_text(" ".join(rest))
print(way, word, flush=True)
folder.mkdir(exist_ok=way == "--resume")
if word != "die":
    (folder / "checkpoint.pt").touch()
if "die" in word:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(2 if word == "refuse" else 0)
"""


def test_a_killed_run_is_resumed(tmp_path, monkeypatch):
    """By a script that does as planned: die, with a checkpoint or without, refuse, or finish."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "planned.py").write_text(PLANNED)
    folder = tmp_path / "run"
    plan = tmp_path / "plan"
    words = ["python", "planned.py", "--total-timesteps", "9"]
    plan.write_text("die save-die finish")
    assert run.execute(folder, words) == "" and run.is_finished(folder, words)
    assert run.is_finished(folder, ["python", "planned.py", "--total-timesteps=9"])
    assert not run.is_finished(folder, [*words, "--seed", "2"])
    ways = [line for line in run.read_log(folder) if line.startswith("--")]
    assert ways == ["--run-dir save-die", "--resume finish"]
    assert len(list(tmp_path.glob("run__no-checkpoint__*"))) == 1  # kept, not deleted
    plan.write_text("save-die " * run.ATTEMPTS)
    assert "exit code -9" in run.execute(folder, words) and not plan.read_text()
    assert not run.is_finished(folder, words)
    plan.write_text("refuse finish")  # what a script refuses it will refuse again
    assert "exit code 2" in run.execute(folder, words) and plan.read_text() == "finish"


def start_benchmark(program, folder, flags):
    words = f"--runs runs --seeds 1 --methods base --jobs 2 {flags}".split()
    words = [sys.executable, program, *words]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)


def test_failures_are_shown(tmp_path):
    """By a copy of run.py with two scripts of its own, of which one fails."""
    (tmp_path / "benchmark").mkdir()
    program = shutil.copy(ROOT / "benchmark" / "run.py", tmp_path / "benchmark")
    (tmp_path / "qmp_sac.py").write_text("exit('the disk is full')")
    (tmp_path / "qmp_mtsac.py").write_text("")
    process = start_benchmark(program, tmp_path, "--scripts qmp_sac qmp_mtsac")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "qmp_sac__base__1: failed" in output and "the disk is full" in output
    assert "qmp_mtsac__base__1: finished" in output


def test_own_tasks_are_found_and_ctrl_c_ends_every_run(tmp_path):
    (tmp_path / "my_tasks.py").write_text("from envs.pointreach import make_tasks")
    flags = "--env-ids my_tasks:make_tasks --scripts qmp_sac --total-timesteps 4e6"
    process = start_benchmark(ROOT / "benchmark" / "run.py", tmp_path, flags)
    folder = tmp_path / "runs" / "my_tasks-make_tasks__qmp_sac__base__1"
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 1
    for _ in range(50):
        time.sleep(0.2)
        if subprocess.run(["pgrep", "-f", folder], stdout=subprocess.DEVNULL).returncode == 1:
            return
    raise AssertionError(f"{folder} is still trained")


# TABLES AND PICTURES OF ONE'S OWN RUNS


def make_run(folder, success, seed=1, tasks=("a", "b"), metric="height", qmp=True, **args):
    """A run's folder: evaluations at steps 100, 200, ... with a mean success of the numbers."""
    folder.mkdir(parents=True)
    args = {"switch_period": 1, "batch_size": 32, "qmp": qmp, "seed": seed} | args
    args = {"env_id": "PointReach-v0", "total_timesteps": 100 * len(success)} | args
    record = {"script": "qmp_sac", "args": args, "tasks": tasks}
    record |= {"git_commit": "abc", "versions": {"torch": "2"}}
    (folder / "args.json").write_text(json.dumps(record))
    own = 0.75 if qmp else 1.0
    rows = []
    for t, value in enumerate(success, start=1):
        for i, task in enumerate(tasks):
            row = {"global_step": 100 * t, "acting": "own", "task": task, "success_rate": value}
            row |= {"episodic_return": -t - i, "episodic_length": 50, metric: t}
            row |= {"agreement": 0.5, "gap": 0.1}
            other = tasks[0] if i else tasks[1]
            row |= {f"acted/{task}": own, f"acted/{other}": 1 - own}
            rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "evaluations.csv", index=False)
    return folder


@pytest.fixture
def pictures(monkeypatch):
    """Figures that plot.py would save, by the names of their files."""
    found = {}
    monkeypatch.setattr(plot, "save", lambda figure, path: found.update({path.name: figure}))
    yield found
    drawing.plt.close("all")


def test_a_comparison(tmp_path, pictures, capsys):
    make_run(tmp_path / "base1", [0, 0, 0.5], qmp=False, switch_period=9)
    make_run(tmp_path / "base2", [0, 0.5, 1], seed=2, qmp=False)
    make_run(tmp_path / "held", [0, 1, 1], switch_period=10)
    make_run(tmp_path / "batch", [0, 1], batch_size=8)
    assert plot.main(plot.Args(runs=(tmp_path,))) == 0
    table = pd.read_csv(tmp_path / "plots" / tmp_path.name / "PointReach-v0-table.csv")
    names = ["without QMP --batch-size 32", "QMP --batch-size 8"]
    names += ["QMP, held for 10 steps --batch-size 32"]
    assert table["group"].tolist() == names
    first = table.iloc[0]
    assert (first["seeds"], first["steps"], first["interval"]) == ("1 2", 300, "range")
    assert (first["success"], first["success_low"], first["success_high"]) == (0.75, 0.5, 1.0)
    assert first["success_over_training"] == pytest.approx(1 / 3, abs=1e-4)
    assert first["return"] == -3.5 and math.isnan(first["success_of_mixture"])
    assert "0.75 [0.50, 1.00]" in capsys.readouterr().out
    learning = pictures["PointReach-v0-learning.png"].axes
    lines = {line.get_label(): line for line in learning[0].lines}
    assert lines[names[0]].get_ydata().tolist() == [0, 0.25, 0.75]
    assert lines[names[0]].get_color() == run.GREY and lines[names[2]].get_color() == run.GREEN
    titles = [axes.get_title("left") for axes in learning]
    assert titles == ["success rate", "episodic return", "height"]
    titles = [axes.get_title("left") for axes in pictures["PointReach-v0-acting.png"].axes]
    assert titles == [names[1], "QMP, held for 10 steps\n--batch-size 32"]
    assert "PointReach-v0-switch.png" in pictures


def test_one_run_with_one_evaluation_and_names_of_any_kind(tmp_path, pictures):
    folder = make_run(tmp_path / "run", [1.0], tasks=("NA", "1"), metric="seed")
    assert plot.main(plot.Args(runs=(folder,))) == 0
    assert (folder / "plots" / "PointReach-v0-table.csv").exists()
    axes = pictures["PointReach-v0-learning.png"].axes[0]
    assert not axes.lines[0].get_label().startswith("QMP")  # no curve of one point, but a bar
    assert [label.get_text() for label in axes.get_yticklabels()] == ["QMP"]
    drawing.save(pictures["PointReach-v0-tasks.png"], folder / "tasks.png")
    assert (folder / "tasks.png").stat().st_size > 5_000


def test_more_than_five_groups_have_more_pictures(tmp_path, pictures):
    for k in range(7):
        make_run(tmp_path / str(k), [0, k / 7], batch_size=k)
    assert plot.main(plot.Args(runs=(tmp_path,))) == 0
    for part, lines in ((1, 5), (2, 2)):
        axes = pictures[f"PointReach-v0-learning-{part}.png"].axes[0]
        assert len(axes.get_legend_handles_labels()[1]) == lines


def test_what_cannot_be_read_or_written(tmp_path, pictures, capsys):
    good = make_run(tmp_path / "good", [0, 1])
    with open(good / "evaluations.csv", "a") as file:
        file.write("300,own,a,1,-3,50,3,0.5,0.1,0.75,0.25\n300,own,b,1,")
    for name in ("args.json", "evaluations.csv"):
        bad = make_run(tmp_path / f"empty-{name}", [1])
        (bad / name).write_text("")
    make_run(tmp_path / "shorter", [1])
    assert plot.main(plot.Args(runs=(tmp_path,))) == 0
    errors = capsys.readouterr().err
    assert errors.count("is left out") == 3 and "shorter is left out: " in errors
    table = pd.read_csv(tmp_path / "plots" / tmp_path.name / "PointReach-v0-table.csv")
    assert table["steps"].tolist() == [200]
    assert plot.main(plot.Args(runs=(tmp_path,), output=good / "args.json" / "below")) == 2
    assert capsys.readouterr().err.endswith("choose a folder with --output\n")
    assert plot.main(plot.Args(runs=(tmp_path / "nothing",))) == 2


def test_pictures_of_another_comparison_are_kept(tmp_path):
    runs = [plot.Run(tmp_path / name, {}, None) for name in "abc"]
    roots = [run.folder for run in runs]
    assert plot.find_output(runs[:1], roots[:1], None) == tmp_path / "a" / "plots"
    assert plot.find_output(runs, roots[:2], None) == tmp_path / "plots" / "a_vs_b"
    assert plot.find_output(runs, roots[1:], None) == tmp_path / "plots" / "b_vs_c"
    assert plot.find_output(runs, roots, tmp_path / "x") == tmp_path / "x" / "a_vs_b_vs_c"
    many = [tmp_path / f"a-folder-with-a-long-name-{k}" for k in range(9)]
    names = {plot.find_output(runs, many[:k], None).name for k in range(4, 9)}
    assert len(names) == 5 and max(map(len, names)) < 120
    with pytest.raises(ValueError, match="no folder in common"):
        plot.find_output([plot.Run(Path("/a/x"), {}, None)], [Path("/a/x"), Path("/b/y")], None)


# STATISTICS AND RESULTS


def test_statistics_of_few_and_of_many_seeds():
    low, high = drawing.interval(np.array([0.1, 0.9, 0.4]))
    assert (low, high) == (0.1, 0.9)
    low, high = drawing.interval(np.array([0.0, 0, 0, 0, 1]))
    assert low == 0 and 0.4 <= high <= 0.8
    assert drawing.p_value(np.arange(5.0), np.arange(5.0) + 9) == pytest.approx(2 / 252)
    assert math.isnan(drawing.p_value(np.arange(4.0), np.arange(9.0)))
    assert figures.paper_at(figures.MAZE, "qmp_mtsac", "qmp", 1_250_000) == pytest.approx(0.545)
    assert math.isnan(figures.paper_at(figures.MAZE, "qmp_mtsac", "qmp", 100_000))


def test_runs_are_collected_and_the_furthest_is_kept(tmp_path, monkeypatch):
    results = tmp_path / "results"
    for module in (plot, figures):
        monkeypatch.setattr(module, "RESULTS", results)
    uncached = figures.read_evaluations.__wrapped__
    monkeypatch.setattr(figures, "read_evaluations", uncached)
    for seed in range(1, 6):
        make_run(tmp_path / f"base{seed}", [0, 0.5], seed, env_id="Maze-v0", qmp=False)
        make_run(tmp_path / f"qmp{seed}", [0, 1], seed, env_id="Maze-v0")
    (tmp_path / "base1.log").write_text("$ python x\nexit code 0 after 1.5 hours\n")
    make_run(tmp_path / "unfinished", [0.5], 6, env_id="Maze-v0", total_timesteps=900)
    make_run(tmp_path / "unknown", [0.5], env_id="Maze-v0", switch_period=7)
    plot.collect(plot.find_runs([tmp_path]))
    make_run(tmp_path / "again" / "qmp1", [0, 0, 0.5], 1, env_id="Maze-v0")
    make_run(tmp_path / "again" / "qmp2", [0.5], 2, env_id="Maze-v0")
    plot.collect(plot.find_runs([tmp_path / "again"]))
    rows = pd.read_csv(results / "Maze-v0.csv")
    assert list(rows)[:6] == ["script", "method", "seed", "global_step", "acting", "task"]
    assert len(rows) == 10 * 2 * 2 + 2
    records = pd.read_csv(results / "runs.csv").set_index(["method", "seed"])
    assert records["global_step"].loc[("qmp", 1)] == 300
    assert records["hours"].loc[("base", 1)] == 1.5
    assert records["global_step"].loc[("qmp", 2)] == 200 and len(records) == 10
    group = figures.get_group("Maze-v0", "qmp_sac", "qmp")
    assert (len(group.seeds), group.end()) == (5, 200)
    overview = figures.make_overview()
    assert "| Maze-v0 | separate SAC agents | 0.2k | 5 | 0.50 | 0.80 |" in overview


def test_methods_that_end_earlier_are_left_out_of_a_later_comparison(monkeypatch):
    ends = {"base": 200, "qmp": 200, "qmp-uniform": 100}
    rows = [
        {"script": "qmp_mtsac", "method": method, "seed": 1, "global_step": step}
        for method, end in ends.items()
        for step in range(100, end + 1, 100)
    ]
    monkeypatch.setattr(figures, "read_evaluations", lambda env_id: pd.DataFrame(rows))
    assert set(figures.get_groups("Maze-v0", "qmp_mtsac", ends)) == set(ends)
    assert set(figures.get_groups("Maze-v0", "qmp_mtsac", ends, 200)) == {"base", "qmp"}


def test_the_docs_show_the_committed_results():
    """The tables in README.md and benchmark/results/README.md are those of the CSV files."""
    readme = (ROOT / "README.md").read_text()
    page = (ROOT / "docs" / "qmp_dnc.md").read_text()
    assert figures.make_overview() in readme
    assert figures.make_details() in (figures.RESULTS / "README.md").read_text()
    seeds = figures.make_seeds().to_csv(index=False, float_format="%.4g")
    assert (figures.RESULTS / "seeds.csv").read_text() == seeds
    rows = pd.read_csv(figures.RESULTS / "kl-coef.csv", dtype={"kl_coef": str})
    for coefficient, success in rows.groupby("kl_coef")["first_stage"].mean().items():
        assert f"{success:.2f} with {coefficient}" in page


def test_every_figure_of_the_docs_can_be_drawn_with_at_most_five_lines():
    for name, draw in figures.FIGURES.items():
        figure = draw()
        assert (figure is not None) == (figures.RESULTS / f"{name}.png").exists(), name
        for axes in figure.axes if figure else []:
            labelled = [line for line in axes.lines if not line.get_label().startswith("_")]
            assert len(labelled) <= 5, name
    drawing.plt.close("all")
