"""The README and the pages in docs/: commands and code run as written, links lead somewhere, tables are true."""

import importlib
import inspect
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import gymnasium as gym
import pandas as pd
import pytest
import run as benchmark
import torch
import tyro
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
import qmp_sac

ROOT = Path(__file__).parent.parent
README, BENCHMARK = ROOT / "README.md", ROOT / "benchmark" / "README.md"
SCRIPTS = ["qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds"]
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in SCRIPTS)]
EVALUATION = {"eval_frequency", "eval_episodes"}
SMALL = ["--hidden-sizes=8", "--batch-size=4", "--eval-episodes=1"]


def by_name(path):
    return str(path.relative_to(ROOT))


def blocks(page):
    """(language, text) of the page's blocks of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)


def commands(text):
    """(module, flags) of the commands `python qmp_*.py ...` at the start of a line or of a span of code."""
    lines = re.findall(r"(?:^|`)python (qmp_\w+)\.py([^\n`]*)", text, re.M)
    return [(importlib.import_module(script), shlex.split(flags, comments=True)) for script, flags in lines]


def run_short(module, flags):
    """Run a command with small networks and a two hundredth of its steps."""
    args = tyro.cli(module.Args, args=flags)
    steps = ["total_timesteps", "learning_starts", "checkpoint_frequency", "distill_period"]
    steps = {f"--{name.replace('_', '-')}": getattr(args, name) // 200 for name in steps if hasattr(args, name)}
    if args.resume and "--total-timesteps" not in flags:
        del steps["--total-timesteps"]  # that of the run
    short = [f"{flag}={number}" for flag, number in steps.items()]
    run_dir = Path(args.resume or args.run_dir or f"runs/{len(list(Path('runs').glob('*')))}")
    short += [] if args.resume else [f"--run-dir={run_dir}"]
    agent = module.main([*flags, *SMALL, *short, "--eval-frequency=1_000_000"])  # once, at the end
    if args.eval_only:
        assert set(pd.read_csv(run_dir / "final_evaluation.csv").acting) == {"own", "mixture"}
    else:
        assert pd.read_csv(run_dir / "evaluations.csv").global_step.max() >= args.total_timesteps // 200
        assert all(parameter.isfinite().all() for parameter in agent.parameters())


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """In an empty folder, `make train` too; of commands for environments that take long the arguments are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, name)
    train = subprocess.run(["make", "--dry-run", "train"], capture_output=True, text=True, check=True).stdout
    for language, text in blocks(page):
        text = text.replace("make train ", train.replace(".venv/bin/", ""))
        if language == "python":
            if file := re.match(r"# (\w+\.py)\n", text):
                Path(file[1]).write_text(text)
            exec(compile(text, by_name(page), "exec"), {"__name__": "page"})
        for module, flags in commands(text):
            if "--help" in flags:
                with pytest.raises(SystemExit, match="0"):
                    module.main(flags)
                continue
            env_id = tyro.cli(module.Args, args=flags).env_id
            if "PointReach" in env_id or "my_tasks" in env_id:
                run_short(module, flags)
            else:
                assert env_id in envs.TASKS or env_id.startswith("MetaWorld:")
    for module, flags in commands(re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)):
        tyro.cli(module.Args, args=flags)


def test_policy_of_the_readme_acts_as_in_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_short(qmp_sac, ["--run-dir", "runs/first"])
    text = next(text for _, text in blocks(README) if "checkpoint" in text)
    page = {}
    exec(text, page)
    agent, args, obs, lengths = page["agent"], page["args"], page["obs"].numpy(), page["vec"].episode_lengths
    own, mixture = (qmp_sac.Mixture(agent, args, p, mean_actions=True) for p in (1.0, 0.0))
    assert page["actions"] == pytest.approx(own.act(obs, lengths), abs=1e-6)  # PointReach's are in [-1, 1]
    mixture.act(obs, lengths)
    assert page["chosen"].tolist() == mixture.policies.tolist()
    evaluated = pd.read_csv("runs/first/evaluations.csv").iloc[-len(obs) :]
    again = envs.evaluate(page["vec"], own, 1, [args.seed, int(evaluated["global_step"].iloc[0]), 2])
    assert again["episodic_return"].tolist() == pytest.approx(evaluated["episodic_return"].tolist(), rel=1e-12)


def test_copied_switch_rates_like_a_loop():
    """What docs/qmp_sac.md says to copy works without the rest of the project, and is Eq. 2's estimate."""
    text = next(text for language, text in blocks(ROOT / "docs" / "qmp_sac.md") if language == "python")
    copied = [inspect.getsource(function) for function in (qmp_sac.squash, qmp_sac.q_switch)]
    head = "import math, torch\nfrom torch import Tensor, nn\n" + "".join(copied)
    text, found = re.subn(r"^from qmp_sac import .*\n", "", text, flags=re.M)
    assert found == 1
    page = {}
    exec(head + text, page)
    N, A, obs = page["N"], page["A"], page["obs"]
    for i in range(N):
        for j in range(N):
            action = page["policies"][j](obs[i])[:A].tanh()
            values = [critic(torch.cat([obs[i], action])).item() for critic in page["critics"][i]]
            assert page["scores"][i, j].item() == pytest.approx(min(values), abs=1e-6)
    assert page["chosen"].tolist() == page["scores"].argmax(1).tolist()
    assert page["actions"].shape == (N, A)


def test_commands_with_the_papers_settings_are_those_of_the_benchmark():
    """But for how often and how long it evaluates."""
    compared = []
    for page in PAGES:
        for module, flags in commands(page.read_text()):
            args = tyro.cli(module.Args, args=flags) if "--help" not in flags else module.Args()
            if args.env_id in benchmark.SETTINGS and "PointReach" not in args.env_id:
                words = benchmark.command(args.env_id, module.__name__, "qmp", seed=1, budget="paper")
                expected = vars(tyro.cli(module.Args, args=words[2:]))
                assert {name: x for name, x in vars(args).items() if x != expected[name]}.keys() <= EVALUATION
                compared.append((module.__name__, args.env_id))
    assert {(f"qmp_{name}", f"MetaWorldMT{N}-v3") for name in ("sac", "mtsac") for N in (10, 50)} <= set(compared)


def test_flags_exist():
    """A flag between backticks is one of a script, but for those of other programs."""
    known = {"--help", "--logdir"}
    for name in SCRIPTS:
        for field in vars(importlib.import_module(name).Args()):
            known |= {f"--{field.replace('_', '-')}", f"--no-{field.replace('_', '-')}"}
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
        spans = [span for span in re.findall(r"`([^`]+)`", prose) if span.startswith(("--", "python qmp_"))]
        assert {flag for span in spans for flag in re.findall(r"--[a-z-]+", span)} <= known


@pytest.mark.parametrize("page", [README, *sorted(ROOT.glob("docs/*.md")), BENCHMARK], ids=by_name)
def test_links(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target
    assert not re.search(r"(?<![\w.:/])/(home|root|work|usr|opt|Users)/", text)


def test_readme_is_for_ten_minutes():
    assert len(README.read_text().splitlines()) <= 200


def test_pytorch_of_the_readme_is_the_pinned_one():
    pins = [re.search(r"torch==[\d.]+", path.read_text())[0] for path in (README, ROOT / "requirements.txt")]
    assert pins[0] == pins[1]


def test_environments_of_the_readme():
    """Their table has every environment, its number of tasks and its time limit."""
    rows = re.findall(r"^\| (`\w+-v\d`.*?) \| ([\d, ;]+) \| (\d+) \|", README.read_text(), re.M)
    seen = {}
    for names, counts, limit in rows:
        for name, count in zip(re.findall(r"`([^`]+)`", names), re.findall(r"\d+", counts), strict=True):
            seen[name] = int(count), int(limit)
    assert seen == {name: (len(tasks), gym.spec(f"qmp/{name}").max_episode_steps) for name, tasks in envs.TASKS.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_metrics_of_the_pages(tmp_path, monkeypatch, name):
    """The tables name what TensorBoard gets, and all of it."""
    monkeypatch.chdir(tmp_path)
    flags = "--run-dir runs/x --total-timesteps 600 --learning-starts 50 --checkpoint-frequency 600 --eval-mixture"
    importlib.import_module(name).main([*flags.split(), *SMALL])
    events = EventAccumulator("runs/x").Reload().Tags()["scalars"]
    tasks = envs.TASKS["PointReach-v0"]
    logged = {tag.removesuffix(f"/{task}") for tag in events for task in tasks if tag.endswith(f"/{task}")}
    logged |= {tag for tag in events if tag.count("/") == 1}
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in {"qmp_sac", name})
    cells = re.findall(r"^\| (`(?:charts|eval|eval_mixture|switch|losses)/.*?) \|", text, re.M)
    documented = {metric for cell in cells for metric in re.findall(r"`([^`]+)`", cell)} - {"eval/METRIC"}
    assert logged == {tag for tag in documented if tag != "eval_mixture/..."} | {
        tag.replace("eval/", "eval_mixture/") for tag in documented if tag.startswith("eval/")
    }
    columns = pd.read_csv("runs/x/evaluations.csv").columns
    assert [column for column in columns if f"`{column}`" not in text] == [f"acted/{task}" for task in tasks]
