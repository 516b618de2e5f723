"""The matrix of runs, and the tables and figures made of it."""

import contextlib
import dataclasses
import importlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import numpy as np
import plot
import psutil
import pytest
import run
import speed
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from matplotlib.figure import Figure

import qmp_sac

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
    assert [r.folder.name for r in runs] == [
        f"Maze-v0__qmp_sac__{method}__{seed}" for seed in (3, 4) for method in ("base", "qmp")
    ]
    assert {r.total for r in runs} == {6_000_000}
    assert run.main(args) == 0
    assert capsys.readouterr().out.splitlines() == [" ".join(r.command) for r in runs]
    assert not list(tmp_path.iterdir())


DRIVER = """
import run, sys
folder, flags, methods, seeds, address = sys.argv[1:]
run.SETTINGS = {"PointReach-v0": run.Setting(paper="", laptop=flags)}
run.METHODS = {"base": "--no-qmp", "qmp": "", "refused": "--gamma 2"}
run.Path(folder, f"stop-{run.platform.node()}-{run.os.getpid()}").touch()  # left by another of the same number
where = {"jobs": 1} if address == "local" else {"address": address}
matrix = {"scripts": ["qmp_sac"], "methods": methods.split(","), "seeds": range(1, 1 + int(seeds))}
sys.exit(run.main(run.Args(**matrix, **where, runs=run.Path(folder))))
"""


def drive(folder, flags, *methods, seeds=1, address="local", **variables):
    """Start the matrix in a process of its own, with further environment variables."""
    command = [sys.executable, "-c", DRIVER, str(folder), flags, ",".join(methods), str(seeds), address]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmark")} | variables
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_runs_are_finished_resumed_and_failures_listed(tmp_path):
    folder = tmp_path / "laptop" / "PointReach-v0__qmp_sac__qmp__1"
    qmp_sac.main([*TINY.split(), "--seed", "1", "--run-dir", str(tmp_path / "whole")])
    # Broken off before its end: its first checkpoint, at step 0, is there.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(qmp_sac.ReplayBuffer, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        qmp_sac.main([*TINY.split(), "--seed", "1", "--run-dir", str(folder)])
    process = drive(tmp_path, TINY, "qmp", "refused")
    output, errors = process.communicate()
    assert process.returncode == 1
    assert "2 runs, 0 of them finished before" in output
    assert "refused__1: exit code 2: qmp_sac.py: error: --gamma must be from 0 to 1" in errors
    assert (folder / "evaluations.csv").read_bytes() == (tmp_path / "whole" / "evaluations.csv").read_bytes()
    assert (folder / "finished").exists()
    log = (folder.parent / f"{folder.name}.log").read_text()
    assert log.startswith(f"$ python qmp_sac.py --env-id PointReach-v0 --seed 1 {TINY}\n")
    assert "already exists" not in log  # it went on from the checkpoint
    process = drive(tmp_path, TINY + " --gamma 0.9", "qmp")  # the table of settings has changed since
    _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("\n") == 1
    assert f"was begun as: python qmp_sac.py --env-id PointReach-v0 --seed 1 {TINY}; delete it" in errors
    before = (folder / "args.json").stat().st_mtime_ns
    process = drive(tmp_path, TINY, "qmp")
    assert "1 runs, 1 of them finished before" in process.communicate()[0]
    assert process.returncode == 0
    assert (folder / "args.json").stat().st_mtime_ns == before
    shutil.rmtree(folder)  # but not the log beside it
    (planned,) = run.matrix(run.Args(scripts=["qmp_sac"], methods=["qmp"], seeds=[1], runs=tmp_path))
    assert (
        run.execute(dataclasses.replace(planned, command=planned.command[:6] + TINY.split()), tmp_path / "stop") is None
    )
    assert planned.log.read_text().count("$ python") == 1


class Deadly(gym.Wrapper):
    """Kills its process in its 40th step, unless the file that the variable DEATHS names has no letters left."""

    steps = 0

    def step(self, action):
        self.steps += 1
        deaths = Path(os.environ["DEATHS"])
        if self.steps == 40 and (left := deaths.read_text()):
            deaths.write_text(left[1:])
            os.kill(os.getpid(), signal.SIGKILL)
        return self.env.step(action)


def make_deadly(seed, vectorization, render_mode):
    """Two tasks of PointReach, one of them deadly."""
    thunks = [lambda: Deadly(gym.make("qmp/PointReach-v0", task=0)), lambda: gym.make("qmp/PointReach-v0", task=1)]
    return SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)


def test_a_killed_run_is_tried_again_from_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "tests", ROOT / "benchmark"))))
    monkeypatch.setenv("DEATHS", str(tmp_path / "deaths"))
    command = f"python qmp_sac.py --env-id test_benchmark:make_deadly {TINY} --checkpoint-frequency 50".split()
    whole, killed, hopeless = (run.Run(tmp_path / name, command, total=400) for name in ("whole", "killed", "hopeless"))
    for planned, deaths in ((whole, 0), (killed, run.ATTEMPTS - 1)):
        (tmp_path / "deaths").write_text("x" * deaths)
        assert run.execute(planned, tmp_path / "stop") is None and planned.finished()
        assert planned.log.read_text().count("$ python") == 1 + deaths
    for file in ("evaluations.csv", "mixture.csv"):
        assert (killed.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    monkeypatch.setattr(run, "ATTEMPTS", 1)
    (tmp_path / "deaths").write_text("x")
    assert run.execute(hopeless, tmp_path / "stop").startswith("exit code -9") and not hopeless.finished()


def test_a_run_that_cannot_be_started_is_listed(tmp_path):
    (tmp_path / "laptop").write_text("a file where the runs' folders go")
    process = drive(tmp_path, TINY, "qmp")
    _, errors = process.communicate()
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert "PointReach-v0__qmp_sac__qmp__1: FileExistsError" in line and str(tmp_path / "laptop") in line


def test_stopped_by_a_signal_leaves_a_checkpoint(tmp_path):
    folder = tmp_path / "laptop" / "PointReach-v0__qmp_sac__qmp__1"
    flags = TINY.replace("--total-timesteps 400", "--total-timesteps 4000000 --checkpoint-frequency 1e9")
    process = drive(tmp_path, flags, "qmp", "base")  # the second one waits for the only core
    while not (folder / "evaluations.csv").exists() or len((folder / "evaluations.csv").read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    stopped = torch.load(folder / "checkpoint.pt")["global_step"]
    assert stopped > 0 and not (folder / "finished").exists()
    assert not list(tmp_path.glob("stop*"))
    assert not list(tmp_path.glob("laptop/*base*/*")) and not list(tmp_path.glob("laptop/*base*.log"))
    assert float((folder / "hours").read_text()) >= 0


def test_a_folder_is_trained_in_by_one_at_a_time(tmp_path):
    """A training whose worker has died goes on; who starts it again waits for it and finds it finished."""
    args = run.Args(scripts=["qmp_sac"], methods=["qmp"], seeds=[1], runs=tmp_path)
    (planned,) = run.matrix(args)
    planned = dataclasses.replace(planned, command=planned.command[:6] + TINY.split(), total=400)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: run.execute(planned, tmp_path / "stop"), range(2))) == [None, None]
    log = Path(f"{planned.folder}.log").read_text()
    assert log.count("results in") == 1 and "the run is finished" in log


def test_who_waits_for_a_folder_can_be_stopped(tmp_path):
    args = run.Args(scripts=["qmp_sac"], methods=["qmp"], seeds=[1], runs=tmp_path)
    (planned,) = run.matrix(args)
    planned.folder.parent.mkdir(parents=True)
    with open(f"{planned.folder}.lock", "w") as lock, ThreadPoolExecutor(1) as pool:
        assert run.try_lock(lock)
        waiting = pool.submit(run.execute, planned, tmp_path / "stop")
        (tmp_path / "stop").touch()
        assert waiting.result() == "stopped"
    assert not planned.folder.exists()


def test_a_node_of_a_cluster_is_killed(tmp_path):
    """Two nodes; all processes of one are killed in the midst of a run: all runs finish, as if nothing had happened."""
    flags = TINY.replace("--total-timesteps 400", "--total-timesteps 4000 --checkpoint-frequency 400")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables |= {"PYTHONPATH": str(ROOT / "benchmark"), "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray")}  # a short path
    ray = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", "--node-ip-address=127.0.0.1"]
    head = ["--head", f"--port={address.split(':')[1]}", "--include-dashboard=false"]
    nodes, process = [], None
    try:
        for name, role in (("head", head), ("second", [f"--address={address}"])):
            with open(tmp_path / f"{name}.log", "w") as output:
                nodes.append(subprocess.Popen([*ray, *role], env=os.environ | variables, stdout=output, stderr=output))
            while "Ray runtime started" not in (said := (tmp_path / f"{name}.log").read_text()):
                assert nodes[-1].poll() is None, said
                time.sleep(0.1)
        stranger = drive(tmp_path, flags, "base", address=address, **variables | {"RAY_AUTH_TOKEN": "0" * 64})
        _, errors = stranger.communicate()
        assert stranger.returncode == 2 and f"error: --address {address}" in errors
        assert not list(tmp_path.glob("laptop"))
        process = drive(tmp_path, flags, "base", "qmp", seeds=2, address=address, **variables)
        victim = None
        while not victim or not plot.read(victim / "evaluations.csv"):
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
            for child in psutil.Process(nodes[1].pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = child.cmdline()
                    victim = Path(words[words.index("--run-dir") + 1]) if "--run-dir" in words else victim
        kill_tree(nodes[1])
        assert not (victim / "finished").exists()
        _, errors = process.communicate(timeout=600)
    finally:
        for started in [process, *nodes] if process else nodes:
            kill_tree(started)
        shutil.rmtree(variables["RAY_TMPDIR"], ignore_errors=True)
    assert process.returncode == 0, errors
    assert len(list(tmp_path.glob("laptop/*/finished"))) == 4
    assert Path(f"{victim}.log").read_text().count("$ python") == 2
    for method, seed in itertools.product(("base", "qmp"), (1, 2)):
        more = ["--no-qmp"] if method == "base" else []
        whole = tmp_path / f"{method}-{seed}"
        qmp_sac.main([*flags.split(), *more, "--seed", str(seed), "--run-dir", str(whole)])
        for file in ("evaluations.csv", "mixture.csv"):
            found = tmp_path / "laptop" / f"PointReach-v0__qmp_sac__{method}__{seed}" / file
            assert found.read_bytes() == (whole / file).read_bytes()


def kill_tree(process):
    """Kill a process and all that it has started, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for member in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
    process.wait()


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--seeds -1", "--seeds"),
        ("--jobs 0", "--jobs"),
        ("--jobs 2 --address auto", "a cluster counts its own"),
        (f"--runs {__file__}/here", f"{__file__} is no folder"),
    ],
)
def test_bad_input(tmp_path, flags, words):
    process = subprocess.run(
        [sys.executable, ROOT / "benchmark" / "run.py", "--runs", tmp_path, *flags.split()],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and words in process.stderr
    assert not list(tmp_path.iterdir())


def test_smoke_draws_its_figures(tmp_path):
    """Four runs, shortened."""
    code = (
        f"import run, sys; run.SETTINGS = {{'PointReach-v0': run.Setting(paper='', laptop={TINY!r})}}; "
        f"sys.exit(run.main(run.Args(suite='smoke', runs=run.Path({str(tmp_path)!r}))))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "benchmark")}
    result = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    records = plot.read(tmp_path / "smoke" / "runs.csv")
    assert [(record["method"], record["seed"]) for record in records] == [
        (method, seed) for method in ("base", "qmp") for seed in "12"
    ]
    for name in ("success.png", "PointReach-v0_mixture.png"):
        assert (tmp_path / "smoke" / name).stat().st_size > 10_000


MIXTURE = [[0.75, 0.25], [0.4, 0.6]]


def fake(folder, curve, method, seed, env_id="PointReach-v0", budget="laptop", evaluations=10):
    """A run folder as run.py leaves it: mean success curve(t) in ten evaluations of two tasks."""
    run_dir = folder / budget / f"{env_id}__qmp_sac__{method}__{seed}"
    run_dir.mkdir(parents=True)
    rows = []
    for t in range(1, evaluations + 1):
        for task, sign in (("easy", 1), ("reach-middle-sparse", -1)):
            row = {"global_step": 100 * t, "task": task, "episodic_return": -t, "episodic_length": 50}
            rows.append(row | {"success_rate": np.clip(curve(t) + sign * 0.25 * (t < 10), 0, 1)})
    plot.write(run_dir / "evaluations.csv", rows)
    shares = [(t, i, j, MIXTURE[i][j]) for t in (100, 100 * evaluations) for i in range(2) for j in range(2)]
    names = ("global_step", "task", "policy", "probability")
    plot.write(run_dir / "mixture.csv", [dict(zip(names, share, strict=True)) for share in shares])
    versions = dict.fromkeys(("python", "torch", "gymnasium", "mujoco", "metaworld"), "1.0")
    record = {"versions": versions, "git_commit": "abc", "tasks": ["easy", "reach-middle-sparse"]}
    (run_dir / "args.json").write_text(json.dumps(record))
    Path(f"{run_dir}.log").write_text(f"$ python qmp_sac.py --{method}\nmore\n")
    if evaluations == 10:
        (run_dir / "hours").write_text("0.5\n0.25\n")
        (run_dir / "finished").touch()
    return run_dir


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results, and two READMEs with markers."""
    monkeypatch.setattr(plot, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    (tmp_path / "benchmark").mkdir()
    for folder in (tmp_path, tmp_path / "benchmark"):
        (folder / "README.md").write_text("before\n<!-- results -->\n<!-- end of results -->\nafter\n")
    return tmp_path / "results"


def draw(runs, output):
    plot.main(["--results", "--runs", str(runs), "--output", str(output)])
    return tuple((output.parent / folder / "README.md").read_text() for folder in (".", "benchmark"))


def test_collect_draw_and_table(results, tmp_path):
    runs = tmp_path / "runs"
    for seed, last in ((1, 0.5), (2, 1.0), (3, 0.5)):
        fake(runs, lambda t, last=last: last, "qmp", seed)
        fake(runs, lambda t: 0.5, "base", seed)
    text, more = draw(runs, results)
    rows = plot.read(results / "PointReach-v0.csv")
    assert len(rows) == 6 * 20
    assert [row["method"] for row in rows[::60]] == ["base", "qmp"]
    (record,) = plot.select(plot.read(results / "runs.csv"), method="base", seed="2")
    assert record["hours"] == "0.75" and record["steps"] == "1000" and record["command"] == "python qmp_sac.py --base"
    assert text.startswith("before\n<!--") and text.endswith("<!-- end of results -->\nafter\n")
    (line,) = [line for line in text.splitlines() if line.startswith("| PointReach-v0 | `qmp_sac.py`, No-Sharing")]
    assert "| 0.50 [0.50, 0.50] | 0.67 [0.50, 1.00] |" in line
    assert line.endswith("| 0 of 3 | 1 of 3 |")
    for name in ("success.png", "PointReach-v0_mixture.png"):
        assert (results / name).stat().st_size > 10_000
    assert "PointReach-v0_mixture.png" in more and "variants" not in more

    # Another sitting, whose folder holds one of these runs again and one more: the CSV keeps what is not replaced.
    more = tmp_path / "more"
    fake(more, lambda t: 1.0, "qmp", 1)
    fake(more, lambda t: 1.0, "qmp-period-1", 1)
    text, more = draw(more, results)
    assert "| 0.50 [0.50, 0.50] | 0.83 [0.50, 1.00] |" in text
    assert "`qmp_sac.py`, 1,000 steps:" in more and "| alone | 3 | 0.50 [0.50, 0.50] | 0 of 3 |" in more
    assert "| `--switch-period 1` | 1 | 1.00 (1 seed) | 1 of 1 |" in more
    assert "PointReach-v0_variants.png" in more and (results / "PointReach-v0_variants.png").exists()
    assert text.count("<!-- end of results -->") == 1


def test_curves_show_mean_and_interval():
    rows = runs_of((0, 0, 0), (0, 0.5, 1), (0, 0.25, 0.5), method="qmp") + runs_of((0.5, 0.5, 0.5), method="base")
    axes = Figure().subplots()
    plot.draw_curves(axes, rows, "success_rate", ["base", "qmp"])
    assert [line.get_linestyle() for line in axes.lines] == ["--", "-"]
    assert [line.get_label() for line in axes.lines] == ["alone, 1 seed", "+ QMP, 3 seeds"]
    assert axes.lines[1].get_xydata().tolist() == [[1000, 0], [2000, 0.25], [3000, 0.5]]
    band = axes.collections[1].get_paths()[0].vertices
    assert [sorted({y for x, y in band if x == step}) for step in (1000, 2000, 3000)] == [[0], [0, 0.5], [0, 1]]


def test_mixtures_are_drawn_as_they_are(results, tmp_path, monkeypatch):
    fake(tmp_path / "runs", lambda t: 0.5, "qmp", 1)
    figures = []
    monkeypatch.setattr(plot, "save", lambda figure, path: figures.append(figure))
    draw(tmp_path / "runs", results)
    assert [image.get_array().tolist() for axes in figures[-1].axes for image in axes.images] == [MIXTURE] * 4
    assert figures[-1].axes[0].get_ylabel() == "qmp_sac\ntask" and figures[-1].axes[0].get_xlabel() == "acting policy"


def test_budgets_are_not_mixed(results, tmp_path):
    for budget, value in (("laptop", 0.5), ("paper", 1.0)):
        for method in ("base", "qmp"):
            fake(tmp_path / "runs", lambda t, value=value: value, method, 1, budget=budget)
    text, _ = draw(tmp_path / "runs", results)
    assert text.count("0.50 (1 seed) | 0.50 (1 seed)") == text.count("1.00 (1 seed) | 1.00 (1 seed)") == 1
    assert "| PointReach-v0_paper |" in text
    assert len(plot.read(results / "runs.csv")) == 4
    figures = {"success.png", "PointReach-v0_mixture.png", "PointReach-v0_paper_mixture.png"}
    assert {path.name for path in results.glob("*.png")} == figures


def test_a_run_that_is_under_way(results, tmp_path):
    """Its half-written evaluation does not count, and the table says how far it is."""
    fake(tmp_path / "runs", lambda t: 0.5, "base", 1)
    run_dir = fake(tmp_path / "runs", lambda t: 0.5, "qmp", 1, evaluations=3)
    with open(run_dir / "evaluations.csv", "a") as file:
        file.write("400,easy,1.0,-1,50\n400,reach-mid")
    Path(f"{run_dir}.log").unlink()  # and it was started by hand
    text, _ = draw(tmp_path / "runs", results)
    assert "| 300 | 1 | 0.50 (1 seed) | 0.50 (1 seed) |" in text
    (record,) = plot.select(plot.read(results / "runs.csv"), method="qmp")
    assert (record["steps"], record["finished"], record["hours"]) == ("300", "False", "0.00")
    plot.main([str(run_dir)])


def test_variants_are_compared_where_all_of_them_have_been(results, tmp_path):
    """At the last step that all have reached; nothing is said of a script without such a step."""
    fake(tmp_path / "runs", lambda t: 0.1 * t, "base", 1)
    fake(tmp_path / "runs", lambda t: 0.1 * t, "qmp-uniform", 1, evaluations=4)
    _, more = draw(tmp_path / "runs", results)
    assert "`qmp_sac.py`, 400 steps:" in more and "| alone | 1 | 0.40 (1 seed) |" in more
    file = fake(tmp_path / "runs", lambda t: 0.1 * t, "qmp-softmax", 1, evaluations=1) / "evaluations.csv"
    file.write_text(file.read_text().replace("\n100,", "\n150,"))
    _, more = draw(tmp_path / "runs", results)
    assert "### PointReach-v0" in more and "`qmp_sac.py`," not in more


def test_who_got_further_is_kept(results, tmp_path, capsys):
    """Someone begins a committed run again, and plots before it is done."""
    fake(tmp_path / "runs", lambda t: 0.5, "base", 1)
    fake(tmp_path / "runs", lambda t: 0.5, "qmp", 1)
    draw(tmp_path / "runs", results)
    before = {path.name: path.read_text() for path in results.glob("*.csv")}
    assert len(before) == 3
    fake(tmp_path / "again", lambda t: 1.0, "qmp", 1, evaluations=4)
    text, _ = draw(tmp_path / "again", results)
    assert "runs.csv keeps 1,000 steps of" in capsys.readouterr().out
    assert "| 1,000 | 1 | 0.50 (1 seed) | 0.50 (1 seed) |" in text
    assert {path.name: path.read_text() for path in results.glob("*.csv")} == before


def test_a_first_evaluation_without_a_mixture(results, tmp_path):
    """As long as actions are random there are evaluations only; and two seeds may have no step in common."""
    for seed in (1, 2):
        run_dir = fake(tmp_path / "runs", lambda t: 0.5, "qmp", seed, evaluations=1)
        (run_dir / "mixture.csv").unlink()
        file = run_dir / "evaluations.csv"
        file.write_text(file.read_text().replace("\n100,", f"\n{100 * seed},"))
    draw(tmp_path / "runs", results)
    assert {path.name for path in results.glob("*.csv")} == {"PointReach-v0.csv", "runs.csv"}
    assert len(plot.read(results / "runs.csv")) == 2


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.csv"
    plot.write(path, [{"a": 1}, {"b": 2, "a": 3}])
    assert path.read_text() == "a,b\n1,\n3,2\n"

    class Broken:
        def __str__(self):
            raise OSError("the disk is full")

    with pytest.raises(OSError):
        plot.write(path, [{"a": 2}, {"a": Broken()}])
    assert path.read_text() == "a,b\n1,\n3,2\n"
    assert list(tmp_path.iterdir()) == [path]


def test_the_readmes_are_found_from_a_relative_path(results, tmp_path, monkeypatch):
    fake(tmp_path / "runs", lambda t: 0.5, "qmp", 1)
    monkeypatch.chdir(tmp_path)
    plot.main(["--results", "--runs", "runs", "--output", "results"])
    assert "PointReach-v0_mixture.png" in (tmp_path / "benchmark" / "README.md").read_text()


def test_no_runs_or_no_place(results, tmp_path, capsys):
    for runs, output, word in ((tmp_path / "nowhere", results, "nowhere"), (tmp_path, Path(__file__), __file__)):
        with pytest.raises(SystemExit) as stop:
            draw(runs, output)
        assert stop.value.code == 2 and word in capsys.readouterr().err


def runs_of(*curves, **more):
    """Rows of runs, one for each list of success rates; evaluations every thousand steps."""
    run = {"env": "PointReach-v0", "budget": "paper", "script": "qmp_sac", "method": "qmp-period-1"} | more
    return [
        run | {"seed": str(seed), "global_step": str(1000 * t), "success_rate": str(value)}
        for seed, values in enumerate(curves)
        for t, value in enumerate(values, start=1)
    ]


def test_curves_end_where_the_shortest_run_does():
    steps, values = plot.curves(runs_of((0.1, 0.2, 0.3), (0.1, 0.2)), "success_rate")
    assert steps.tolist() == [1000, 2000]
    assert values.tolist() == [[0.1, 0.2], [0.1, 0.2]]


@pytest.mark.parametrize(
    "curves, first, for_good",
    [
        (((0, 1, 0, 1, 1),), "2,000", "4,000"),
        (((0, 1, 0, 1, 1), (1, 1, 1, 1, 1), (0, 0, 1, 0, 1)), "1,000 to 3,000", "1,000 to 5,000"),
        (((0, 1, 1, 1, 0.8), (0.5, 0.5, 0.5, 0.5, 1)), "2,000 to 5,000", "5,000 (1 of 2)"),
        (((0, 1, 1, 1, 0), (0, 0, 0, 0, 0)), "2,000 (1 of 2)", "never"),
    ],
)
def test_when_a_task_is_solved(curves, first, for_good):
    rows = runs_of(*curves)
    assert plot.when_solved(rows, "success_rate") == first
    assert plot.when_solved(rows, "success_rate", for_good=True) == for_good


def test_what_comes_after_the_end_does_not_count():
    rows = runs_of((0, 1, 0))
    assert plot.when_solved(rows, "success_rate", end=1000) == "never"
    assert plot.when_solved(rows, "success_rate", end=2000, for_good=True) == "2,000"


def test_the_table_of_variants_says_when_tasks_are_solved():
    """The sparse one first at the second evaluation; the other has a relapse at the fourth."""
    rows = runs_of((1, 0, 1, 0.8, 1), task="easy") + runs_of((0, 1, 1, 1, 1), task="reach-middle-sparse")
    table = plot.variants("PointReach-v0", rows)
    assert "| `--switch-period 1` | 1 | 1.00 (1 seed) | 1 of 1 | 2,000 | 5,000 |" in table


def test_interval_is_that_of_many_resamples():
    values = np.random.default_rng(1).random((7, 3))
    low, high = plot.interval(values)
    picks = np.random.default_rng(2).integers(7, size=(100_000, 7))
    expected = np.quantile(values[picks].mean(1), (0.025, 0.975), axis=0)
    assert np.allclose((low, high), expected, atol=0.01)
    assert [x.tolist() for x in plot.interval(values[:1])] == [values[0].tolist()] * 2


def test_readmes_show_the_committed_results():
    shown = (ROOT / "README.md").read_text().partition("<!-- results -->\n")[2].partition("<!-- end of results -->")[0]
    assert shown.strip() == plot.overview(plot.RESULTS).strip()
    shown = (ROOT / "benchmark" / "README.md").read_text().partition("<!-- results -->\n")[2]
    shown, _, rest = shown.partition("<!-- end of results -->")
    assert shown.strip() == plot.details(plot.RESULTS).strip()
    shown = rest.partition("<!-- speed -->\n")[2]
    rows = plot.read(plot.RESULTS / "speed.csv")
    assert shown.partition("<!-- end of speed -->")[0].strip() == speed.tables(rows).strip()
    for _, env_id, rows in plot.results(plot.RESULTS, ".csv"):
        names = "env budget script qmp method seed global_step task success_rate episodic_return".split()
        assert list(rows[0])[: len(names)] == names, env_id
        assert all(row["qmp"] == str(row["method"] != "base") for row in rows), env_id
