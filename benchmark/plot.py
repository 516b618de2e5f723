"""Plots and tables: of one run, or of all that benchmark/run.py has run.

python benchmark/plot.py                # the newest run in runs/: writes plots.png into its folder
python benchmark/plot.py runs/my_run    # that run
python benchmark/plot.py --results      # runs/benchmark/ -> benchmark/results/*.csv -> figures and the README's table
"""

import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from run import METHODS, command
from scipy.stats import bootstrap

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
FEW = 12  # tasks that a legend and numbers have room for
BASES = {"qmp_sac": "No-Sharing", "qmp_mtsac": "Parameter-Sharing", "qmp_dnc": "Divide-and-Conquer"}
BASES["qmp_uds"] = "Data-Sharing"
SPARSE = {"PointReach-v0": "reach-middle-sparse", "MultistageReacher-v0": "reach-1-2-0-sparse"}
METRIC = {"MultistageReacher-v0": "first_stage"}  # what the paper calls success, where it is not success_rate
# Final success in the paper's curves, of the base method and with QMP.
PAPER = {
    ("MultistageReacher-v0", "qmp_sac"): ("0.80", "1.00"),
    ("MultistageReacher-v0", "qmp_mtsac"): ("0.45", "0.80"),
    ("MultistageReacher-v0", "qmp_uds"): ("0.38", "0.32"),
    ("Maze-v0", "qmp_sac"): ("0.60", "0.72"),
    ("Maze-v0", "qmp_mtsac"): ("0.90", "1.00"),
    ("Maze-v0", "qmp_uds"): ("0.55", "0.63"),
    ("MetaWorldMT10-v3", "qmp_sac"): ("0.71", "0.80"),
    ("MetaWorldMT10-v3", "qmp_mtsac"): ("0.70", "0.70"),
    ("MetaWorldMT10-v3", "qmp_uds"): ("0.80", "0.84"),
    ("MetaWorldMT50-v3", "qmp_mtsac"): ("0.36", "0.42"),
    ("KitchenMT10-v0", "qmp_sac"): ("0.52", "0.76"),
    ("KitchenMT10-v0", "qmp_mtsac"): ("0.28", "0.47"),
    ("KitchenMT10-v0", "qmp_uds"): ("0.63", "0.53"),
}


@dataclass
class Args:
    """Arguments."""

    run: tyro.conf.Positional[Path | None] = None
    """folder of the run to plot; default the newest in runs/"""
    results: bool = False
    """collect all runs below --runs instead, and make figures and tables of them"""
    runs: Path = ROOT / "runs" / "benchmark"
    """where benchmark/run.py left its folders"""


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none if it does not exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> None:
    """Write rows, all with the same columns, as a CSV file."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_mixture(rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] and the share of each policy in each task's acting [T, N, P], from the rows of mixture.csv."""
    steps = np.unique([int(row["global_step"]) for row in rows])
    N = len({row["task"] for row in rows})
    return steps, np.array([float(row["probability"]) for row in rows]).reshape(len(steps), N, N)


def draw_mixture(axes, mixture: np.ndarray, tasks: list[str]) -> None:
    """A heat map of the mixture [N, P]: task i's row says who acted for it."""
    axes.imshow(mixture, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="acting policy", ylabel="task")
    if len(tasks) <= FEW:
        axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
        axes.set_yticks(range(len(tasks)), tasks)
        for (i, j), share in np.ndenumerate(mixture):
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black")


def plot_run(run_dir: Path) -> Path:
    """Draw `plots.png` in the run's folder. Returns its path."""
    rows = read(run_dir / "evaluations.csv")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    steps = np.unique([int(row["global_step"]) for row in rows])
    success = np.array([float(row["success_rate"]) for row in rows]).reshape(len(steps), len(tasks))  # [T, N]
    mixture_steps, mixture = read_mixture(read(run_dir / "mixture.csv"))

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
    for i, task in enumerate(tasks):
        left.plot(steps, success[:, i], "o-", markersize=3, label=task)
        middle.plot(mixture_steps, mixture[:, i, i], "o-", markersize=3)
    left.plot(steps, success.mean(1), "k--", label="mean")
    left.set(title="Success of each task's own policy", ylim=(-0.05, 1.05), ylabel="success rate")
    middle.set(title="Steps in which a task's own policy acted", ylim=(-0.05, 1.05), ylabel="share")
    for axes in (left, middle):
        axes.set_xlabel("environment steps, summed over tasks")
    if len(tasks) <= FEW:
        left.legend(fontsize="small")
    draw_mixture(right, mixture[-1], tasks)
    right.set_title("Who acted, last rows")
    figure.suptitle(run_dir.name)
    return save(figure, run_dir / "plots.png")


def save(figure, path: Path) -> Path:
    """Write a figure and forget it. Returns the path."""
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def key(row: dict[str, str]) -> tuple:
    """Which run a row belongs to, in the order of the files."""
    return row["env"], list(BASES).index(row["script"]), row["method"], int(row["seed"])


def merge(path: Path, new: list[dict]) -> None:
    """Put rows into a CSV file, in place of those of the same runs."""
    found = {key(row) for row in new}
    rows = [row for row in read(path) if key(row) not in found] + new
    write(path, sorted(rows, key=key))


def collect(runs: Path) -> None:
    """Copy what the runs below a folder have logged into the CSV files of benchmark/results/."""
    evaluations, mixtures, records = defaultdict(list), defaultdict(list), []
    for path in sorted(runs.glob("*/*/evaluations.csv")):
        folder = path.parent
        env_id, script, method, seed = folder.name.split("__")
        run = {"env": env_id, "script": script, "method": method, "seed": seed}
        rows = read(path)
        if not rows:
            continue
        evaluations[env_id] += [run | row for row in rows]
        if method == "qmp" and seed == "1":
            mixtures[env_id] += [run | row for row in read(folder / "mixture.csv")]
        record = json.loads((folder / "args.json").read_text())
        hours = sum(map(float, (folder / "hours").read_text().split()))
        run |= {"steps": rows[-1]["global_step"], "hours": f"{hours:.2f}", "git_commit": record["git_commit"]}
        run |= {name: record["versions"][name] for name in ("python", "torch", "gymnasium", "mujoco", "metaworld")}
        records.append(run | {"command": " ".join(command(env_id, script, method, int(seed), folder.parent.name))})
    for env_id, rows in evaluations.items():
        merge(RESULTS / f"{env_id}.csv", rows)
    for env_id, rows in mixtures.items():
        merge(RESULTS / f"{env_id}_mixture.csv", rows)
    if records:
        merge(RESULTS / "runs.csv", records)


def curves(rows: list[dict[str, str]], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] that all runs have reached, and the mean over tasks of a column, run by run [R, T]."""
    runs = defaultdict(lambda: defaultdict(list))
    for row in rows:
        runs[key(row)][int(row["global_step"])].append(float(row[column]))
    steps = sorted(set.intersection(*(set(run) for run in runs.values())))
    return np.array(steps), np.array([[np.mean(run[step]) for step in steps] for run in runs.values()])


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% bootstrap interval of the mean over runs: values [R, ...] -> low and high [...]."""
    if len(values) == 1 or np.ptp(values) == 0:
        return values.min(0), values.max(0)
    found = bootstrap((values,), np.mean, axis=0, method="percentile", rng=0).confidence_interval
    return found.low, found.high


def select(rows: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def plot_curves(env_id: str, rows: list[dict[str, str]]) -> Path:
    """Success against steps, a panel for each base method: dashed alone, solid with QMP, mean and 95% interval."""
    scripts = [script for script in BASES if select(rows, script=script)]
    metric = METRIC.get(env_id, "success_rate")
    figure, panels = plt.subplots(
        1, len(scripts), figsize=(4 * len(scripts), 3.4), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, script in zip(panels[0], scripts, strict=True):
        for method, style in (("base", "--"), ("qmp", "-")):
            chosen = select(rows, script=script, method=method)
            if not chosen:
                continue
            steps, values = curves(chosen, metric)
            label = f"{'+ QMP' if method == 'qmp' else 'alone'}, {len(values)} seed{'s' if len(values) > 1 else ''}"
            line = axes.plot(steps, values.mean(0), style, label=label)[0]
            axes.fill_between(steps, *interval(values), color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=f"{BASES[script]} ({script}.py)", xlabel="environment steps, summed over tasks")
        axes.set_ylim(-0.05, 1.05)
        axes.legend(fontsize="small", loc="lower right")
    panels[0, 0].set_ylabel(metric.replace("_", " "))
    figure.suptitle(env_id)
    return save(figure, RESULTS / f"{env_id}.png")


def plot_mixtures(env_id: str, rows: list[dict[str, str]]) -> Path:
    """Who acted for whom as training goes on: a row for each base method, four moments from left to right."""
    scripts = [script for script in BASES if select(rows, script=script)]
    figure, panels = plt.subplots(
        len(scripts), 4, figsize=(13, 3.2 * len(scripts)), squeeze=False, layout="constrained"
    )
    for line, script in zip(panels, scripts, strict=True):
        steps, mixture = read_mixture(select(rows, script=script))
        for axes, t in zip(line, np.linspace(0, len(steps) - 1, 4).astype(int), strict=True):
            axes.imshow(mixture[t], vmin=0, vmax=1, cmap="Blues")
            axes.set(title=f"{steps[t]:,} steps", xlabel="acting policy", xticks=[], yticks=[])
        line[0].set_ylabel(f"{script}\ntask")
    figure.suptitle(f"{env_id}: who acted for whom (seed 1)")
    return save(figure, RESULTS / f"{env_id}_mixture.png")


def final(rows: list[dict[str, str]], column: str) -> str:
    """The mean of a column over runs, tasks and the last tenth of the training, with its 95% interval; for a table."""
    if not rows:
        return ""
    steps, values = curves(rows, column)
    values = values[:, steps > 0.9 * steps[-1]].mean(1)
    if len(values) == 1:
        return f"{values[0]:.2f} (1 seed)"
    low, high = interval(values)
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def seeds_solved(rows: list[dict[str, str]], column: str) -> str:
    """On how many seeds a column is 1 in the last evaluation; for a table."""
    last = {}
    for row in rows:
        last[key(row)] = float(row[column])
    return f"{sum(value == 1 for value in last.values())} of {len(last)}" if last else ""


def table(env_id: str, rows: list[dict[str, str]]) -> str:
    """Markdown: how each base method did alone and with QMP in an environment, then the variants of the switch."""
    metric, sparse = METRIC.get(env_id, "success_rate"), SPARSE.get(env_id)
    paper = [PAPER.get((env_id, script)) for script in BASES]
    head = ["", "steps", "seeds", "alone", "+ QMP", *(["paper: alone", "+ QMP"] if any(paper) else [])]
    if sparse:
        head += ["sparse task solved: alone", "+ QMP"]
    lines = []
    for script in BASES:
        base, qmp = (select(rows, script=script, method=method) for method in ("base", "qmp"))
        if not base or not qmp:
            continue
        reached = min(int(curves(chosen, metric)[0][-1]) for chosen in (base, qmp))
        seeds = [len({row["seed"] for row in chosen}) for chosen in (base, qmp)]
        line = [f"`{script}.py`, {BASES[script]}", f"{reached:,}", "/".join(map(str, dict.fromkeys(seeds)))]
        line += [final(base, metric), final(qmp, metric), *PAPER.get((env_id, script), ("", "") if any(paper) else ())]
        if sparse:
            line += [seeds_solved(select(chosen, task=sparse), metric) for chosen in (base, qmp)]
        lines.append(line)
    text = (
        f"**{env_id}**, {metric.replace('_', ' ')}, mean of the last tenth of the training [95% bootstrap interval]\n\n"
    )
    text += markdown(head, lines)
    for script in BASES:
        methods = sorted({row["method"] for row in select(rows, script=script)} - {"base", "qmp"})
        if methods:
            lines = []
            for method in ("base", "qmp", *methods):
                chosen = select(rows, script=script, method=method)
                line = [
                    f"`{METHODS[method]}`" if METHODS[method] else "as by default",
                    str(len({row["seed"] for row in chosen})),
                    final(chosen, metric),
                ]
                lines.append(line + ([seeds_solved(select(chosen, task=sparse), metric)] if sparse else []))
            text += f"\nVariants of the switch, `{script}.py`:\n\n"
            text += markdown(
                ["", "seeds", metric.replace("_", " "), *(["sparse task solved"] if sparse else [])], lines
            )
    return text


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def tables() -> str:
    """All that the README shows of benchmark/results/."""
    parts = []
    for env_id, rows in results().items():
        picture = f"![{env_id}](benchmark/results/{env_id}.png)"
        parts.append(f"{table(env_id, rows)}\n{picture}\n")
    return "\n".join(parts)


def results() -> dict[str, list[dict[str, str]]]:
    """The rows of every environment that has been run."""
    env_ids = dict.fromkeys(row["env"] for row in read(RESULTS / "runs.csv"))
    return {env_id: read(RESULTS / f"{env_id}.csv") for env_id in env_ids}


def insert(path: Path, text: str, name: str) -> None:
    """Put generated text between a file's markers <!-- NAME --> and <!-- end of NAME -->."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = path.read_text().partition(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}")


def main(argv: list[str]) -> None:
    """Plot the run that is named, or the newest, or all results."""
    args = tyro.cli(Args, args=argv)
    if args.results:
        collect(args.runs)
        for env_id, rows in results().items():
            print(plot_curves(env_id, rows))
            mixtures = read(RESULTS / f"{env_id}_mixture.csv")
            if mixtures:
                print(plot_mixtures(env_id, mixtures))
        insert(ROOT / "README.md", tables(), "results")
        return
    newest = sorted(Path("runs").glob("**/mixture.csv"), key=lambda path: path.stat().st_mtime)
    drawable = [path.parent for path in newest if read(path)]
    run = args.run or (drawable[-1] if drawable else None)
    if run is None or not read(run / "mixture.csv"):
        print(f"plot.py: error: no run with a mixture in {run or 'runs/'}", file=sys.stderr)
        raise SystemExit(2)
    print(f"plots in {plot_run(run)}")


if __name__ == "__main__":
    main(sys.argv[1:])
