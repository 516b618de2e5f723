"""README and docs/: commands and code run as written, links lead somewhere, tables are true."""

import importlib
import inspect
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import run as benchmark
import torch
import tyro
from helpers import ROOT, SCRIPTS, TASKS, rows, scalars, train

import envs
import qmp_sac

README, BENCHMARK = ROOT / "README.md", ROOT / "benchmark" / "README.md"
TABLES = ROOT / "benchmark" / "results" / "README.md"
PAGES = [README, *(ROOT / "docs" / f"{name}.md" for name in SCRIPTS)]
SMALL = ["--hidden-sizes=8", "--batch-size=4", "--eval-episodes=1"]
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def python_block(page, word):
    """The first block of Python on a page that has a word in it."""
    blocks = CODE.findall(page.read_text())
    return next(text for language, text in blocks if language == "python" and word in text)


def commands(text):
    """(module, flags) of `python qmp_*.py ...` at the start of a line or of a span of code."""
    lines = re.findall(r"(?:^|`)python (qmp_\w+)\.py([^\n`]*)", text, re.M)
    modules = [importlib.import_module(script) for script, _ in lines]
    flags = [shlex.split(flags, comments=True) for _, flags in lines]
    return list(zip(modules, flags, strict=True))


def run_short(module, flags):
    """Run a command with small networks and a two hundredth of its steps."""
    args = tyro.cli(module.Args, args=flags)
    names = {"total_timesteps", "learning_starts", "checkpoint_frequency", "distill_period"}
    if args.resume and "--total-timesteps" not in flags:
        names.remove("total_timesteps")  # those of the run
    short = []
    for name in names:
        if getattr(args, name, None) is not None:
            short.append(f"--{name.replace('_', '-')}={getattr(args, name) // 200}")
    run_dir = Path(args.resume or args.run_dir or f"runs/{len(list(Path('runs').glob('*')))}")
    short += [] if args.resume else [f"--run-dir={run_dir}"]
    agent = module.main([*flags, *SMALL, *short, "--eval-frequency=1_000_000"])  # once, at the end
    assert rows(run_dir)["global_step"].max() >= args.total_timesteps // 200
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    """In an empty folder, `make train` too; where training takes long the arguments are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, name)
    words = ["make", "--dry-run", "train"]
    make_train = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    for language, text in CODE.findall(page.read_text()):
        text = text.replace("make train ", make_train.replace(".venv/bin/", ""))
        if language == "python":
            if file := re.match(r"# (\w+\.py)\n", text):
                Path(file[1]).write_text(text)
            exec(compile(text, page, "exec"), {"__name__": "page"})
        for module, flags in commands(text):
            if "--help" in flags:
                with pytest.raises(SystemExit, match="0"):
                    module.main(flags)
                continue
            env_id = tyro.cli(module.Args, args=flags).env_id
            if "PointReach" in env_id or "my_tasks" in env_id:
                run_short(module, flags)
            else:
                assert env_id in envs.ENVIRONMENTS or env_id.startswith("MetaWorld:")
        for path in re.findall(r"^python (benchmark/\w+\.py)", text, re.M):
            assert (ROOT / path).exists()
    for module, flags in commands(CODE.sub("", page.read_text())):
        tyro.cli(module.Args, args=flags)


def test_policy_of_the_readme_acts_as_in_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_short(qmp_sac, ["--run-dir", "runs/first"])
    page = {}
    exec(python_block(README, "checkpoint"), page)
    args, vec = page["args"], page["vec"]
    table = rows(Path("runs/first")).iloc[-vec.num_envs :]
    seed = [args.seed, int(table["global_step"].iloc[0]), 2]
    again = envs.evaluate(vec, page["actor"], 1, seed)
    returns = table["episodic_return"].tolist()
    assert again["episodic_return"].tolist() == pytest.approx(returns, rel=1e-12)


def test_copied_switch_scores_like_a_loop():
    """What docs/qmp_sac.md says to copy works without the rest of the project."""
    text = python_block(ROOT / "docs" / "qmp_sac.md", "q_switch")
    functions = (qmp_sac.squash, qmp_sac.q_switch, qmp_sac.best_policies)
    head = "import math, torch\nfrom torch import Tensor, nn\n"
    head += "".join(inspect.getsource(function) for function in functions)
    text, found = re.subn(r"^from qmp_sac import .*\n", "", text, flags=re.M)
    assert found == 1
    page = {}
    exec(head + text, page)
    N, A, obs = page["N"], page["A"], page["obs"]
    for i in range(N):
        for j in range(N):
            action = page["policies"][j](obs[i])[:A].tanh()
            values = [critic(torch.cat([obs[i], action])) for critic in page["critics"][i]]
            assert page["scores"][i, j].item() == pytest.approx(min(values).item(), abs=1e-6)
    assert page["chosen"].tolist() == page["scores"].argmax(1).tolist()
    assert page["actions"].shape == (N, A)


def test_a_switch_rule_of_ones_own(tmp_path, monkeypatch):
    page = {"__name__": "page"}
    exec(python_block(ROOT / "docs" / "qmp_sac.md", "my_switch"), page)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(qmp_sac, "Mixture", page["SoftmaxMixture"])
    run_short(qmp_sac, [])


def test_commands_with_the_papers_settings_are_those_of_the_benchmark():
    """But for how often and how long it evaluates."""
    compared = []
    for page in PAGES:
        for module, flags in commands(page.read_text()):
            args = module.Args() if "--help" in flags else tyro.cli(module.Args, args=flags)
            if args.env_id in benchmark.SETTINGS and "PointReach" not in args.env_id:
                words = benchmark.command(args.env_id, module.__name__, "qmp", 1, budget="paper")
                expected = vars(tyro.cli(module.Args, args=words[2:]))
                different = {name for name, x in vars(args).items() if x != expected[name]}
                assert different <= {"eval_frequency", "eval_episodes"}
                compared.append((module.__name__, args.env_id))
    assert ("qmp_sac", "MetaWorldMT10-v3") in compared


def test_flags_exist():
    """A flag between backticks is one of a script, but for those of other programs."""
    known = {"--help", "--logdir", "--video", "--plan", "--index-url"}
    for name in SCRIPTS:
        for field in vars(importlib.import_module(name).Args()):
            known |= {f"--{field.replace('_', '-')}", f"--no-{field.replace('_', '-')}"}
    for page in PAGES:
        spans = re.findall(r"`([^`]+)`", CODE.sub("", page.read_text()))
        spans = [span for span in spans if span.startswith(("--", "python qmp_"))]
        assert {flag for span in spans for flag in re.findall(r"--[a-z-]+", span)} <= known


LINKING = [README, *sorted(ROOT.glob("docs/*.md")), BENCHMARK, TABLES]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: page.name)
def test_links(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            anchors = [re.sub(r"[^\w -]", "", x).lower().replace(" ", "-") for x in headings]
            assert anchor in anchors, target
    assert not re.search(r"(?<![\w.:/])/(home|root|work|usr|opt|Users)/", text)


def test_readme_is_short_and_names_the_pinned_pytorch():
    texts = [path.read_text() for path in (README, ROOT / "requirements.txt")]
    assert len(texts[0].splitlines()) <= 210
    pins = [re.search(r"torch==[\d.]+", text)[0] for text in texts]
    assert pins[0] == pins[1]


def test_environments_of_the_readme():
    """Their table has every environment, its number of tasks and its time limit."""
    table = re.findall(r"^\| (`\w+-v\d`.*?) \| ([\d, ;]+) \| (\d+) \|", README.read_text(), re.M)
    seen = {}
    for names, counts, limit in table:
        names, counts = re.findall(r"`([^`]+)`", names), re.findall(r"\d+", counts)
        for name, count in zip(names, counts, strict=True):
            seen[name] = int(count), int(limit)
    expected = {}
    for name in envs.ENVIRONMENTS:
        tasks = list(envs.make_tasks(name).values())
        expected[name] = len(tasks), tasks[0]()._max_episode_steps
    assert seen == expected


@pytest.mark.parametrize("name", SCRIPTS)
def test_metrics_of_the_pages(tmp_path, name):
    """The tables name what TensorBoard gets, and all of it."""
    train(name, tmp_path / "run", "--eval-mixture --checkpoint-frequency 600")
    tags = set(scalars(tmp_path / "run"))
    logged = {tag for tag in tags if tag.count("/") == 1}
    logged |= {tag.rpartition("/")[0] for tag in tags if tag.endswith(TASKS)}
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in {"qmp_sac", name})
    cells = re.findall(r"^\| (`(?:charts|eval|eval_mixture|switch|losses)/.*?) \|", text, re.M)
    documented = {metric for cell in cells for metric in re.findall(r"`([^`]+)`", cell)}
    documented -= {"eval/METRIC", "eval_mixture/..."}
    mixtures = {tag.replace("eval/", "eval_mixture/") for tag in documented if "eval/" in tag}
    assert logged == documented | mixtures
    undocumented = [name for name in rows(tmp_path / "run") if f"`{name}`" not in text]
    assert undocumented == [f"acted/{task}" for task in TASKS]
