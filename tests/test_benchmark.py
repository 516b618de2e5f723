"""The matrix of runs: the authors' hyper-parameters, retries, stops. Plots, and the tables and figures of results."""

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plot
import pytest
import run
import torch
import tyro
from matplotlib.colors import to_rgb
from torch.utils.tensorboard import SummaryWriter

from envs import TASKS

ROOT = Path(__file__).parent.parent
TINY = "--total-timesteps 400 --learning-starts 100 --eval-episodes 1 --eval-frequency 200 --hidden-sizes 8".split()

# The authors' program. It trains in iterations of some environment steps and some gradient steps, on batches of
# `buffer_batch_size` transitions, once there are `min_buffer_size`, from a replay of a million.
# - Separate networks: the gradient steps are split over the agents; each is one agent's update, on a batch of its own.
#   Every agent has a replay of its own, and all of them wait for `min_buffer_size` transitions in each.
# - A shared network: every gradient step updates it, on a batch of all tasks together. There is one replay for all.
# In order: gradient steps per environment step, buffer_batch_size, min_buffer_size, lr and width, those of shared ones.
AUTHORS = {
    "MultistageReacher-v0": (Fraction(1), 32, 10_000, 3e-4, 256, 1e-3, 512),
    "Maze-v0": (Fraction(1, 6), 256, 3_000, 3e-4, 256, 3e-4, 256),
    "Walker2dMT4-v0": (Fraction(3, 2), 32, 10_000, 3e-4, 256, 3e-4, 256),
    "MetaWorldCDS-v0": (Fraction(1, 10), 256, 5_000, 1.5e-3, 256, 1.5e-3, 256),
    "MetaWorldMT10-v3": (Fraction(1, 10), 2560, 5_000, 1.5e-3, 256, 1.5e-3, 256),
    "MetaWorldMT50-v3": (Fraction(1, 10), 1280, 1_500, 3e-4, 400, 3e-4, 400),
    "KitchenMT10-v0": (Fraction(1, 4), 1280, 2_000, 3e-4, 256, 3e-4, 256),
}
PAPER_STEPS = {"MultistageReacher-v0": 2e6, "Maze-v0": 12e6, "MetaWorldCDS-v0": 10e6, "MetaWorldMT10-v3": 40e6}
PAPER_STEPS |= {"MetaWorldMT50-v3": 30e6, "Walker2dMT4-v0": 8e6, "KitchenMT10-v0": 5e6}


def parse(*command):
    """The arguments that a script makes of a command's flags."""
    _, script, *flags = run.command(*command)
    return tyro.cli(importlib.import_module(script.removesuffix(".py")).Args, args=flags)


@pytest.mark.parametrize("script", run.Script.__args__)
@pytest.mark.parametrize("env_id", AUTHORS)
def test_the_settings_are_the_authors(env_id, script):
    steps, batch, minimum, lr, width, *of_shared = AUTHORS[env_id]
    N, shared = len(TASKS[env_id]), script == "qmp_mtsac"
    lr, width = of_shared if shared else (lr, width)
    for budget in ("paper", "laptop"):
        args = parse(env_id, script, "qmp", 1, budget)
        in_a_turn = Fraction(args.gradient_steps, args.train_frequency)  # updates of all tasks, in N environment steps
        # Of all tasks at once is of one network if they share it, of N if not.
        assert in_a_turn * (1 if shared else N) / N == steps
        assert args.batch_size == (round(batch / N) if shared else batch)
        assert args.learning_starts == (minimum if shared else minimum * N)
        assert args.buffer_size == (1e6 / N if shared else 1e6)
        assert (args.policy_lr, args.q_lr, set(args.hidden_sizes)) == (lr, lr, {width})
        assert (args.alpha, args.gamma, args.tau, args.autotune) == (1.0, 0.99, 0.005, True)
        switch = args.switch_samples, args.switch_entropy, args.switch_rule, args.switch_period
        assert switch == (0, False, "argmax", 1)
        assert args.own_policy_prob == (0.7 if env_id == "MetaWorldMT10-v3" else 0)
        episodes = {"MetaWorldMT10-v3": 50, "MetaWorldMT50-v3": 5, "KitchenMT10-v0": 5}
        assert args.eval_episodes == episodes.get(env_id, 10)
        assert (args.total_timesteps == PAPER_STEPS[env_id]) == (budget == "paper")


def test_methods_mean_what_they_say():
    assert not parse("MetaWorldMT10-v3", "qmp_sac", "base", 1).qmp  # which knows no --own-policy-prob
    found = {}
    for method, script in itertools.product(run.METHODS, run.Script.__args__):
        if run.ONLY.get(method, script) == script:
            args = vars(parse("Maze-v0", script, method, 1))
            default = vars(parse("Maze-v0", script, "qmp", 1))
            changed = {name: value for name, value in args.items() if value != default[name]}
            assert found.setdefault(method, changed) == changed  # in every script
    assert found == {
        "base": {"qmp": False},
        "qmp": {},
        "qmp-eq2": {"switch_samples": 1, "switch_entropy": True},
        "qmp-period-10": {"switch_period": 10},
        "qmp-uniform": {"switch_rule": "uniform"},
        "qmp-uniform-period-10": {"switch_rule": "uniform", "switch_period": 10},
        "qmp-uniform-own-80": {"switch_rule": "uniform", "own_policy_prob": 0.8},
        "qmp-uniform-own-60": {"switch_rule": "uniform", "own_policy_prob": 0.6},
        "qmp-softmax": {"switch_rule": "softmax"},
        "fully-shared": {"qmp": False, "fully_shared": True},
        "base-double-tanh": {"qmp": False, "double_tanh": True},
        "qmp-double-tanh": {"double_tanh": True},
        "qmp-double-tanh-own-999": {"double_tanh": True, "own_policy_prob": 0.999},
        "base-quantile-90": {"qmp": False, "sharing_quantile": 0.9},
        "qmp-quantile-90": {"sharing_quantile": 0.9},
    }


def benchmark(tmp_path, *flags):
    """Start benchmark/run.py."""
    command = [sys.executable, ROOT / "benchmark" / "run.py", "--runs", tmp_path, "--seeds", "1", "--jobs", "2", *flags]
    return subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_prints_commands_and_leaves_out_what_is_not(tmp_path):
    flags = "--env-ids a.b:c --scripts qmp_sac qmp_mtsac --methods fully-shared qmp --hidden-sizes 8 9 --print".split()
    output, _ = benchmark(tmp_path, *flags, "--wandb-project-name", "my project").communicate()
    more = "--hidden-sizes 8 9 --wandb-project-name 'my project'"
    assert output.splitlines() == [
        f"python qmp_sac.py --env-id a.b:c --seed 1 {more}",
        f"python qmp_mtsac.py --env-id a.b:c --seed 1 --no-qmp --fully-shared {more}",
        f"python qmp_mtsac.py --env-id a.b:c --seed 1 {more}",
    ]
    assert not list(tmp_path.iterdir())


def test_flags_given_replace_those_of_the_tables():
    found = " ".join(
        run.command("Maze-v0", "qmp_mtsac", "base", 1, more=["--total-timesteps", "9", "--buffer-size", "8"])
    )
    assert found == (
        "python qmp_mtsac.py --env-id Maze-v0 --seed 1 --eval-episodes 10 --eval-frequency 50_000 --batch-size 26 "
        "--train-frequency 3 --gradient-steps 5 --learning-starts 3_000 --no-qmp --total-timesteps 9 --buffer-size 8"
    )


def test_failures_are_shown_and_the_rest_is_finished_once(tmp_path):
    flags = ["--scripts", "qmp_sac", "qmp_mtsac", "--methods", "base", *TINY, "--pcgrad"]  # which qmp_sac.py lacks
    process = benchmark(tmp_path, *flags)
    output, _ = process.communicate()
    assert (
        process.returncode == 1 and "qmp_sac__base__1: failed" in output and "Unrecognized options: --pcgrad" in output
    )
    finished = tmp_path / "PointReach-v0__qmp_mtsac__base__1"
    record, rows = plot.read_run(finished)
    assert record["script"] == "qmp_mtsac" and rows["global_step"].max() == 400
    process = benchmark(tmp_path, "--scripts", "qmp_mtsac", *flags[3:])
    assert "1 runs" in process.communicate()[0] and process.returncode == 0
    assert Path(f"{finished}.log").read_text().count("$ python") == 1


def test_flags_of_the_switch_are_not_for_base(tmp_path, capsys):
    more = ["--switch-period", "10"]
    assert run.main(run.Args(runs=tmp_path / "runs", print=True), more) == 2
    assert capsys.readouterr().err.startswith("run.py: error: --switch-period is of methods with a switch")
    assert run.main(run.Args(runs=tmp_path / "runs", methods=["qmp"], print=True), more) == 0


def test_a_method_of_another_script_is_refused(tmp_path, capsys):
    assert run.main(run.Args(runs=tmp_path / "runs", methods=["fully-shared"], scripts=["qmp_sac"]), []) == 2
    assert capsys.readouterr().err == "run.py: error: fully-shared is not of qmp_sac\n"
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_checkpoints_all(tmp_path):
    flags = "--scripts qmp_sac --methods qmp --total-timesteps 4e6 --eval-frequency 100 --eval-episodes 1".split()
    process = benchmark(tmp_path, *flags, "--learning-starts", "200")
    folder = tmp_path / "PointReach-v0__qmp_sac__qmp__1"
    while not (folder / "evaluations.csv").exists() or not (folder / "evaluations.csv").stat().st_size:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    assert torch.load(folder / "checkpoint.pt")["global_step"] > 0
    assert "exit code 143" in run.log_of(folder)[-1]


PLANNED = """
import os, pathlib, signal, sys
*flags, way, folder = sys.argv[1:]
folder, plan = pathlib.Path(folder), pathlib.Path("plan")
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


def test_a_killed_run_is_tried_again_from_its_checkpoint(tmp_path, monkeypatch):
    """With a script that does as planned: die, with a checkpoint or without, refuse its flags, or finish."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "planned.py").write_text(PLANNED)
    folder, plan, command = tmp_path / "run", tmp_path / "plan", ["python", "planned.py", "--total-timesteps", "9"]

    def words():
        return [line for line in run.log_of(folder) if line.startswith("--")]

    plan.write_text("die save-die finish")
    assert run.execute(folder, command) == "" and run.finished(folder, command)
    assert words() == ["--run-dir save-die", "--resume finish"]
    assert not run.finished(folder, [*command, "--total-timesteps", "10"])  # then it goes on
    plan.write_text("save-die " * run.ATTEMPTS)
    assert "exit code -9" in run.execute(folder, command) and not run.finished(folder, command)
    assert words()[2:] == ["--resume save-die"] * run.ATTEMPTS and not plan.read_text()
    plan.write_text("refuse finish")  # what a script refuses it will refuse again
    assert "exit code 2" in run.execute(folder, command) and plan.read_text() == "finish"


def test_a_training_that_outlived_its_worker_is_gone_on_with(tmp_path, monkeypatch):
    """It holds the folder while it trains, and leaves a checkpoint; before it had none."""
    monkeypatch.setattr(run, "ROOT", tmp_path)
    (tmp_path / "planned.py").write_text(PLANNED)
    (tmp_path / "plan").write_text("finish")
    folder = tmp_path / "run"
    folder.mkdir()

    class OfTheOther(run.FileLock):
        def __enter__(self):
            (folder / "checkpoint.pt").touch()
            return super().__enter__()

    monkeypatch.setattr(run, "FileLock", OfTheOther)
    assert run.execute(folder, ["python", "planned.py"]) == "" and "--resume finish" in run.log_of(folder)


def make_run(folder, success, seed=1, tasks=("a", "b"), script="qmp_sac", env_id="PointReach-v0", **args):
    """A run's folder: evaluations at steps 100, 200, ... with a mean success of the numbers given."""
    folder.mkdir(parents=True)
    args = {"env_id": env_id, "seed": seed, "learning_starts": 10, "qmp": True, "switch_period": 1} | args
    record = {"script": script, "args": args, "tasks": tasks, "git_commit": "abc", "versions": {"torch": "2"}}
    (folder / "args.json").write_text(json.dumps(record))
    rows = []
    for t, value in enumerate(success, start=1):
        for i, task in enumerate(tasks):
            row = {"global_step": 100 * t, "acting": "own", "task": task, "success_rate": value}
            row |= {"episodic_return": -t - i, "episodic_length": 50, "height": t}
            row |= {f"acted/{policy}": 0.75 if j == i else 0.25 / (len(tasks) - 1) for j, policy in enumerate(tasks)}
            rows.append(row)
    pd.DataFrame(rows).to_csv(folder / "evaluations.csv", index=False)
    return folder


@pytest.fixture
def figures(monkeypatch):
    """Figures, kept open, by the name of their file."""
    kept = {}
    monkeypatch.setattr(plot.plt, "close", lambda figure: None)
    monkeypatch.setitem(plot.plt.rcParams, "figure.max_open_warning", 0)
    save = plot.plt.Figure.savefig
    monkeypatch.setattr(
        plot.plt.Figure,
        "savefig",
        lambda self, path, **more: (kept.update({path.name: self}), save(self, path, **more)),
    )
    yield kept
    plot.plt.close("all")


def lines(figure, panel):
    """Points of the lines in a panel, by their names in the legend."""
    (axes,) = (axes for axes in figure.axes if axes.get_title() == panel)
    legend = figure.legends[0]
    names = {
        tuple(to_rgb(handle.get_color())): text.get_text()
        for handle, text in zip(legend.legend_handles, legend.texts, strict=True)
        if text.get_text() not in ("line", "acting", "own", "mixture")
    }
    return {names[to_rgb(line.get_color())]: line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata())}


def heights(points):
    """The y of points."""
    return [y for _, y in points]


def test_one_run_shows_tasks_mean_and_mixture(tmp_path, figures):
    folder = make_run(tmp_path / "run", [0, 0.5, 1])
    assert plot.main(plot.Args(runs=(folder,))) == 0
    assert (folder / "plots-PointReach-v0.png").stat().st_size > 10_000
    figure = figures["plots-PointReach-v0.png"]
    assert figure.get_suptitle() == "PointReach-v0, qmp_sac (seed 1)"
    assert [axes.get_title() for axes in figure.axes] == ["success_rate", "episodic_return", "height", plot.OWN]
    returns = {name: heights(points) for name, points in lines(figure, "episodic_return").items()}
    assert returns == {"a": [-1, -2, -3], "b": [-2, -3, -4], plot.MEAN: [-1.5, -2.5, -3.5]}
    *thirds, _, _, _ = figures["plots-PointReach-v0-who-acted.png"].axes  # and their colour bars
    assert [axes.get_title() for axes in thirds] == [f"evaluations at {step} to {step}" for step in (100, 200, 300)]
    assert thirds[2].collections[0].get_array().tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert [text.get_text() for text in thirds[2].get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in thirds[2].texts] == ["0.75", "0.25", "0.25", "0.75"]


def test_many_tasks_are_grey_and_success_may_be_unknown(tmp_path, figures):
    make_run(tmp_path / "run", [np.nan, np.nan], tasks=[f"task {i}" for i in range(20)])
    plot.main(plot.Args(runs=(tmp_path,)))
    figure = figures["plots-PointReach-v0.png"]
    assert [axes.get_title() for axes in figure.axes] == ["episodic_return", "height", plot.OWN]
    *tasks, mean = (line for line in figure.axes[0].lines if len(line.get_xdata()))
    assert {line.get_color() for line in tasks} == {"0.7"} and len(tasks) == 20
    assert mean.get_color() == "black" and mean.get_linewidth() > 2
    mixture = figures["plots-PointReach-v0-who-acted.png"].axes[0]
    assert not mixture.texts and len(mixture.get_xticklabels()) == 20


def test_runs_that_differ_by_their_seed_are_one_line(tmp_path, figures):
    for seed, end in ((1, 0.0), (2, 0.5), (3, 1.0)):
        make_run(tmp_path / f"qmp{seed}", [0, 0.5, end], seed, batch_size=32)
        make_run(tmp_path / f"base{seed}", [0.5] * 4, seed, batch_size=32, qmp=False)
    make_run(tmp_path / "period", [1, 1], batch_size=32, switch_period=10)
    make_run(tmp_path / "batch", [1, 0], batch_size=64)
    assert plot.main(plot.Args(runs=(tmp_path,), output=tmp_path / "out")) == 0
    figure = figures["plots-PointReach-v0.png"]
    assert figure.get_suptitle() == "PointReach-v0"
    assert lines(figure, "success_rate") == {
        "--no-qmp --batch-size 32 (3 seeds)": [[100, 0.5], [200, 0.5], [300, 0.5], [400, 0.5]],
        "--qmp --switch-period 10 --batch-size 32 (seed 1)": [[100, 1], [200, 1]],
        "--qmp --switch-period 1 --batch-size 64 (seed 1)": [[100, 1], [200, 0]],
        "--qmp --switch-period 1 --batch-size 32 (3 seeds)": [[100, 0], [200, 0.5], [300, 0.5]],
    }
    vertices = np.concatenate([path.vertices for band in figure.axes[0].collections for path in band.get_paths()])
    ends = [y for x, y in vertices if x == 300]
    assert min(ends) < 0.2 and max(ends) > 0.8  # the mean of resamples is 0, or 1, once in 27 times
    assert len([axes for axes in figures["plots-PointReach-v0-who-acted.png"].axes if axes.get_title()]) == 4


def test_an_environment_whose_tasks_have_changed_has_a_picture_more(tmp_path, figures):
    make_run(tmp_path / "old", [0, 1])
    make_run(tmp_path / "new", [0, 1], tasks=("a", "b", "c"))
    plot.main(plot.Args(runs=(tmp_path,)))
    tasks = [len(figures[f"plots-PointReach-v0{more}-who-acted.png"].axes[0].get_xticklabels()) for more in ("", "-2")]
    assert sorted(tasks) == [2, 3] and {"plots-PointReach-v0.png", "plots-PointReach-v0-2.png"} < set(figures)


def test_lines_are_named_by_the_flags_in_which_they_differ():
    runs = [{"script": "qmp_sac", "qmp": True, "tau": 1, "hidden_sizes": [8, 8]}, {"script": "qmp_sac", "qmp": False}]
    assert [plot.label(run, runs) for run in runs] == ["--qmp", "--no-qmp"]
    assert [plot.label(run, runs[:1]) for run in runs[:1]] == ["qmp_sac"]
    runs += [runs[0] | {"tau": 2}, runs[0] | {"script": "qmp_dnc", "hidden_sizes": [8]}]
    names = ["qmp_sac --qmp --tau 1 --hidden-sizes 8 8", "qmp_sac --no-qmp"]
    names += ["qmp_sac --qmp --tau 2 --hidden-sizes 8 8", "qmp_dnc --qmp --tau 1 --hidden-sizes 8"]
    assert [plot.label(run, runs) for run in runs] == names


def test_a_mean_is_over_the_seeds_that_got_there_each_once(tmp_path, figures, capsys):
    """A seed given twice makes no narrower interval, and a run that has just begun does not cut the others."""
    for name, seed, success in (("a", 1, [0, 0, 0.5]), ("again", 1, [1, 1]), ("b", 2, [1, 1, 1, 0]), ("c", 3, [0.5])):
        make_run(tmp_path / name, success, seed)
    (tmp_path / "link").symlink_to(tmp_path / "b")
    other = make_run(tmp_path / "other", [0.25], seed=3, qmp=False)
    plot.main(plot.Args(runs=(tmp_path, tmp_path / "a", tmp_path / "link"), output=tmp_path))
    assert capsys.readouterr().err == f"{tmp_path}/again is left out: {tmp_path}/a has the same settings and seed\n"
    found = lines(figures["plots-PointReach-v0.png"], "success_rate")
    assert found["--qmp (3 seeds, fewer after step 100)"] == [[100, 0.5], [200, 0.5], [300, 0.75], [400, 0]]
    plot.main(plot.Args(runs=(tmp_path / "b", tmp_path / "b", other)))
    found = lines(figures["plots-PointReach-v0.png"], "success_rate")
    assert "--qmp (seed 2)" in found and found["--no-qmp (seed 3)"] == [[100, 0.25]]
    single = [line for line in figures["plots-PointReach-v0.png"].axes[0].lines if len(line.get_xdata()) == 1]
    assert [line.get_marker() for line in single] == ["o"]


def test_seeds_evaluated_at_different_steps_and_settings_of_an_older_version(tmp_path, figures):
    """A seed's value between two of its evaluations is between theirs. A new flag makes another line."""
    make_run(tmp_path / "a", [0, 0, 0, 0], seed=1)
    rows = pd.read_csv(make_run(tmp_path / "b", [1, 1], seed=2) / "evaluations.csv")
    rows.assign(global_step=rows["global_step"] * 2).to_csv(tmp_path / "b" / "evaluations.csv", index=False)
    make_run(tmp_path / "new", [1] * 3, seed=1, new_flag=1)
    plot.main(plot.Args(runs=(tmp_path,)))
    found = lines(figures["plots-PointReach-v0.png"], "success_rate")
    assert found == {
        "qmp_sac, new (seed 1)": [[100, 1], [200, 1], [300, 1]],
        "qmp_sac, a (seed 1)": [[100, 0], [200, 0], [300, 0], [400, 0]],
        "qmp_sac, b (seed 2)": [[200, 1], [300, 1], [400, 1]],
    }
    shutil.rmtree(tmp_path / "new")
    plot.main(plot.Args(runs=(tmp_path,)))
    height = [[100, 1], [200, 1.5], [300, 2.25], [400, 3]]
    found = lines(figures["plots-PointReach-v0.png"], "height")
    assert found == {"a": height, "b": height, plot.MEAN: height}


def test_a_run_that_is_just_being_written(tmp_path):
    folder = make_run(tmp_path / "run", [0, 1])
    with open(folder / "evaluations.csv", "a") as file:
        file.write("300,own,a,1.0,-1,50,3,1.0,0.0\n300,own,b,0.")
    assert plot.read_run(folder)[1]["global_step"].unique().tolist() == [100, 200]
    (folder / "evaluations.csv").write_text("")
    assert plot.read_run(folder)[1].empty and plot.main(plot.Args(runs=(folder,))) == 0


def test_plots_the_newest_run_with_any_back_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert plot.main(plot.Args()) == 2
    assert capsys.readouterr().err == "plot.py: error: no run in runs; qmp_sac.py makes one\n"
    for name, modified in (("a", 1), ("newest", 3), ("b", 2)):
        os.utime(make_run(tmp_path / "runs" / name, [0, 1]) / "evaluations.csv", (modified, modified))
    environment = os.environ | {"MPLBACKEND": "nonsense"}
    assert subprocess.run([sys.executable, ROOT / "benchmark" / "plot.py"], env=environment).returncode == 0
    assert {path.parent.name for path in tmp_path.rglob("*.png")} == {"newest"}


def test_interval_is_that_of_many_resamples():
    values = np.random.default_rng(1).random(7)
    picks = np.random.default_rng(2).integers(7, size=(100_000, 7))
    expected = np.quantile(values[picks].mean(1), (0.025, 0.975))
    low, high = plot.interval(values)
    assert (low, high) == pytest.approx(expected, abs=0.02)
    assert plot.mean_and_interval(values) == f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"
    assert plot.mean_and_interval(values[:1]) == f"{values[0]:.2f} (1 seed)"
    assert plot.mean_and_interval(values, len(values) + 1).endswith(f"] ({len(values)} seeds)")


def test_probability_of_improvement():
    """Of task one 3 of 4 pairs are won, one of them is a tie; of task two none."""
    assert plot.improvement(np.array([[1, 0], [2, 0]]), np.array([[1, 1], [0, 1]])) == np.mean([3.5 / 4, 0])


@pytest.fixture
def repository(tmp_path, monkeypatch, figures):
    """A repository without results: make(method, success, seed) adds a run, read() makes and returns the tables."""
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "benchmark" / "results")
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        (tmp_path / name).write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")

    def make(method, success, seed=1, folder="runs", env_id="Maze-v0", codes=(9, 0)):
        run_dir = tmp_path / folder / "benchmark" / f"{env_id}__qmp_sac__{method}__{seed}"
        make_run(run_dir, success, seed, env_id=env_id, qmp=method != "base")
        (run_dir / "checkpoint.pt").touch()
        command = f"$ python qmp_sac.py --{method}\nmore\n"
        Path(f"{run_dir}.log").write_text("".join(f"{command}exit code {x} after 0.250 hours\n" for x in codes))
        with SummaryWriter(run_dir) as writer:
            writer.add_scalar("switch/advantage/b", 0.125, 200)

    def read(folder="runs"):
        assert plot.main(plot.Args(runs=(tmp_path / folder,), results=True)) == 0
        return [(tmp_path / name).read_text() for name in ("README.md", "docs/results.md")]

    return make, read


def test_a_script_that_ran_for_fewer_steps_says_so(repository, figures):
    make, read = repository
    for method, success in (("base", 0.25), ("qmp", 0.5)):
        make(method, [success] * 10)
    read()
    for name in ("Maze-v0", "runs"):
        rows = pd.read_csv(plot.RESULTS / f"{name}.csv")
        fewer = rows if name == "runs" else rows[rows["global_step"] <= 500]
        pd.concat([rows, fewer.assign(script="qmp_mtsac")]).to_csv(plot.RESULTS / f"{name}.csv", index=False)
    ends = ("; paper, at its end: 0.60 → 0.72", " (500 steps); paper, at its end: 0.90 → 1.00")
    sac, mtsac = (f"0.25 (1 seed) → 0.50 (1 seed){end}" for end in ends)
    assert f"| Maze-v0, 1,000 steps | {sac} | {mtsac} |" in read()[0]


def test_results_are_gathered_and_told(repository, figures, monkeypatch):
    monkeypatch.setattr(plot, "STAGES", "height")
    make, read = repository
    for seed in (1, 2, 3, 4, 5):
        make("qmp", [0, 1, 1, 1, 1, 1, 1, 1, 1, 0.04 * seed**2], seed)
        make("base", [0, 0, 0, 0, 0, 0, 0, 0, 0, 0.5], seed)
    make_run(plot.ROOT / "runs" / "Maze-v0__qmp_sac__1__20260101-120000-1", [0.5])  # not by benchmark/run.py
    make("base", [1], seed=6, codes=(143,))  # not finished
    make("qmp-uniform", [0.5] * 10)
    overview, details = read()
    rows = pd.read_csv(plot.RESULTS / "Maze-v0.csv")
    assert list(rows)[:7] == ["script", "method", "seed", "global_step", "acting", "task", "success_rate"]
    assert len(rows) == 11 * 20
    logged = rows[rows["advantage"].notna()]
    assert set(logged["global_step"]) == {200} and set(logged["task"]) == {"b"} and set(logged["advantage"]) == {0.125}
    records = pd.read_csv(plot.RESULTS / "runs.csv")
    assert set(records["hours"]) == {0.5} and set(records["global_step"]) == {1000}
    assert set(records["command"]) == {f"python qmp_sac.py --{method}" for method in ("base", "qmp", "qmp-uniform")}
    assert overview.startswith("before\n") and overview.endswith("after\n")
    success = plot.mean_and_interval(np.array([0.04, 0.16, 0.36, 0.64, 1.0]))
    assert f"| Maze-v0, 1,000 steps | 0.50 [0.50, 0.50] → {success}; paper, at its end: 0.60 → 0.72 |" in overview
    # Three of the seeds lose against 0.5; the middle half of all are those of 0.16, 0.36 and 0.64.
    whole = plot.mean_and_interval(np.array([0.804, 0.816, 0.836, 0.864, 0.90]))
    stages = "10.00 [10.00, 10.00]"
    assert f"| qmp | 5 | {success} | {stages} | 0.39 | {whole} | 0.40 | 0.72 |" in details
    assert f"| base | 5 | 0.50 [0.50, 0.50] | {stages} | 0.50 | 0.05 [0.05, 0.05] |  | 0.60 |" in details
    header, last = "|  | a | b | mean | of all steps | own policy acts | without a failure |\n", "0.16 / 10.00"
    assert header in details
    assert f"\n| qmp, 2 | {last} | {last} | {last} | 0.82 | 0.75 | 200: 8 of 9 |\n" in details
    assert "\n| base, 5 | 0.50 / 10.00 | 0.50 / 10.00 | 0.50 / 10.00 | 0.05 | 0.75 |  |\n" in details
    assert "```\npython qmp_sac.py --base\npython qmp_sac.py --qmp\npython qmp_sac.py --qmp-uniform\n```" in details
    panels = {"success_rate": 3, "height": 3, plot.OWN: 2, "advantage": 1}  # with lines of so many methods
    assert {panel: len(lines(figures["Maze-v0.png"], f"qmp_sac: {panel}")) for panel in panels} == panels
    (axes,) = figures["success.png"].axes
    assert [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [0.60, 0.72]


def test_results_are_kept_unless_a_run_has_got_further(repository):
    make, read = repository
    make("base", [0, 0, 0])
    assert "| base | 1 | 0.00 (1 seed) |" in read()[1]
    make("qmp", [0, 0, 1])
    make("qmp-softmax", [0, 0, 0.75])
    read()
    make("qmp", [0.5, 0.5], folder="again")  # begun anew, and not done
    make("base", [0.5, 0.5, 0.5, 0.5], folder="again")
    make("qmp-period-10", [0.25, 0.25, 0.25], folder="again")
    make("qmp-softmax", [0, 0, 0.5], folder="again")  # as far as before: the new one counts
    _, details = read("again")
    assert "### qmp_sac.py, 300 steps" in details
    for line in (
        "| base | 1 | 0.50 (1 seed) |",
        "| qmp | 1 | 1.00 (1 seed) |",
        "| qmp-period-10 | 1 | 0.25 (1 seed) |",
        "| qmp-softmax | 1 | 0.50 (1 seed) |",
    ):
        assert line in details


def test_the_docs_show_the_committed_results(tmp_path, monkeypatch):
    """The tables in README.md and docs/results.md are those of the CSV files."""
    figure = SimpleNamespace(axes_dict={}, savefig=lambda *_, **__: None)
    monkeypatch.setattr(plot, "draw_lines", lambda *_: figure)
    monkeypatch.setattr(plot, "draw_mixtures", lambda _, rows: figure if len(rows) else None)
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/results.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    assert plot.main(plot.Args(runs=(tmp_path / "runs",), results=True)) == 0  # as in a clone, which has no runs
    for name in ("README.md", "docs/results.md"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_the_docs_show_the_search_of_the_coefficient():
    """The one table in docs/results.md that plot.py does not make."""
    rows, page = pd.read_csv(plot.RESULTS / "kl-coef.csv", dtype={"kl_coef": str}), ROOT / "docs" / "results.md"
    success = rows.groupby(["kl_coef", "global_step"])["first_stage"].mean().unstack()
    cells = {"`--kl-coef`": success.index}
    for name, part in {"all evaluations": success, "last five": success.iloc[:, -5:]}.items():
        cells[name] = part.mean(axis=1).map("{:.2f}".format)
    for name, row in cells.items():
        assert f"| {' | '.join([name, *row])} |\n" in page.read_text()
