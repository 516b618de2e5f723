"""Plots and tables: of one run, or of all that benchmark/run.py has run.

python benchmark/plot.py                # the newest run in runs/: writes plots.png into its folder
python benchmark/plot.py runs/my_run    # that run
python benchmark/plot.py --results      # runs/benchmark/ -> benchmark/results/*.csv -> figures, tables in the READMEs
"""

import csv
import itertools
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import tyro
from run import METHODS, SETTINGS, Run, fail
from scipy.stats import bootstrap

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import EngFormatter  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmark" / "results"
FEW = 12  # tasks that a legend and numbers have room for
BASES = {
    "qmp_sac": "No-Sharing",
    "qmp_mtsac": "Parameter-Sharing",
    "qmp_dnc": "Divide-and-Conquer",
    "qmp_uds": "Data-Sharing",
}
SPARSE = {f"PointReach{size}-v0": "reach-middle-sparse" for size in ("", 2, 8)}
SPARSE["MultistageReacher-v0"] = "reach-1-2-0-sparse"
LABELS = {"base": "alone", "qmp": "+ QMP"}
# What counts as success: columns of evaluations.csv and their names, what the paper calls success first.
METRICS = {env_id: {"success_rate": "success rate"} for env_id in SETTINGS}
METRICS["MultistageReacher-v0"] = {"first_stage": "first stage", "success_rate": "all stages"}
# Final success in the paper's curves, of the base method and with QMP.
PAPER = {
    ("MultistageReacher-v0", "qmp_sac"): ("0.80", "1.00"),
    ("MultistageReacher-v0", "qmp_mtsac"): ("0.45", "0.80"),
    ("MultistageReacher-v0", "qmp_uds"): ("0.38", "0.32"),
    ("Maze-v0", "qmp_sac"): ("0.60", "0.72"),
    ("Maze-v0", "qmp_mtsac"): ("0.90", "1.00"),
    ("Maze-v0", "qmp_uds"): ("0.55", "0.63"),
    ("MetaWorldCDS-v0", "qmp_mtsac"): ("0.97", "0.97"),
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
    output: Path = RESULTS
    """where the CSV files and figures go; only if it is benchmark/results/, the READMEs get their tables"""


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none if it does not exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict]) -> None:
    """Write rows as a CSV file, whole or not at all; a column that a row lacks stays empty in it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(itertools.chain.from_iterable(rows)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def whole(rows: list[dict[str, str]], size: int) -> list[dict[str, str]]:
    """Rows without those of a last step of which not all `size` have been written."""
    rows = [row for row in rows if None not in row.values()]
    if not rows:
        return []
    last = [row for row in rows if row["global_step"] == rows[-1]["global_step"]]
    return rows if len(last) == size else rows[: -len(last)]


def load(run_dir: Path) -> tuple[list[str], list[dict[str, str]], list[dict[str, str]]]:
    """A run's tasks, and the rows of its evaluations.csv and mixture.csv; it may just be under way, or broken off."""
    tasks = json.loads((run_dir / "args.json").read_text())["tasks"]
    evaluations, mixture = (read(run_dir / f"{name}.csv") for name in ("evaluations", "mixture"))
    return tasks, whole(evaluations, len(tasks)), whole(mixture, len(tasks) ** 2)


def has_mixture(run_dir: Path) -> bool:
    """Whether a folder is that of a run in which policies, and not chance alone, have acted."""
    return (run_dir / "args.json").exists() and bool(load(run_dir)[2])


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
    tasks, rows, mixture_rows = load(run_dir)
    steps = np.unique([int(row["global_step"]) for row in rows])
    success = np.array([float(row["success_rate"]) for row in rows]).reshape(len(steps), len(tasks))  # [T, N]
    mixture_steps, mixture = read_mixture(mixture_rows)

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
    return row["env"], row["budget"], list(BASES).index(row["script"]), row["method"], int(row["seed"])


def merge(path: Path, new: list[dict]) -> None:
    """Put the rows of runs into a CSV file, in place of older rows of the same runs unless these had got further."""
    runs = by_run(read(path))
    for run, rows in by_run(new).items():
        before, now = (step_of(found[-1]) if found else 0 for found in (runs[run], rows))
        if before > now:
            print(f"{path.name} keeps {before:,} steps of {run}; the run found has {now:,}")
        else:
            runs[run] = rows
    if runs:
        write(path, [row for run in sorted(runs) for row in runs[run]])


def by_run(rows: list[dict]) -> defaultdict[tuple, list[dict]]:
    """The rows of each run, in their order."""
    runs = defaultdict(list)
    for row in rows:
        runs[key(row)].append(row)
    return runs


def step_of(row: dict[str, str]) -> int:
    """The step of a row, or the last one of its run."""
    return int(row.get("steps") or row["global_step"])


def collect(runs: Path, output: Path) -> None:
    """Copy what the runs below a folder have logged into the CSV files of `output`."""
    evaluations, mixtures, records = defaultdict(list), defaultdict(list), []
    for path in sorted(runs.glob("*/*__*__*__*/evaluations.csv")):
        folder = path.parent
        env_id, script, method, seed = folder.name.split("__")
        run = {"env": env_id, "budget": folder.parent.name, "script": script, "qmp": str(method != "base")}
        run |= {"method": method, "seed": seed}
        _, rows, mixture = load(folder)
        if not rows:
            continue
        evaluations[env_id] += [run | row for row in rows]
        if method == "qmp" and seed == "1":
            mixtures[env_id] += [run | row for row in mixture]
        record = json.loads((folder / "args.json").read_text())
        hours = (folder / "hours").read_text().split() if (folder / "hours").exists() else []
        run |= {"steps": rows[-1]["global_step"], "finished": (folder / "finished").exists()}
        run |= {"hours": f"{sum(map(float, hours)):.2f}", "git_commit": record["git_commit"]}
        run |= {name: record["versions"][name] for name in ("python", "torch", "gymnasium", "mujoco", "metaworld")}
        records.append(run | {"command": Run(folder, command=[], total=0).begun_as()})
    for env_id, rows in evaluations.items():
        merge(output / f"{env_id}.csv", rows)
    for env_id, rows in mixtures.items():
        merge(output / f"{env_id}_mixture.csv", rows)
    if records:
        merge(output / "runs.csv", records)


def curves(rows: list[dict[str, str]], column: str, end: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] up to `end` that all runs have reached, and the mean over tasks of a column, run by run [R, T]."""
    runs = defaultdict(lambda: defaultdict(list))
    for row in rows:
        runs[key(row)][int(row["global_step"])].append(float(row[column]))
    steps = sorted(step for step in set.intersection(*map(set, runs.values())) if step <= end)
    return np.array(steps, dtype=int), np.array([[np.mean(run[step]) for step in steps] for run in runs.values()])


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 95% bootstrap interval of the mean over runs: values [R, ...] -> low and high [...]."""
    if len(values) == 1 or np.ptp(values) == 0:
        return values.min(0), values.max(0)
    found = bootstrap((values,), np.mean, axis=0, method="percentile", rng=0).confidence_interval
    return found.low, found.high


def select(rows: list[dict[str, str]], **wanted: str) -> list[dict[str, str]]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def draw_curves(axes, rows: list[dict[str, str]], metric: str, methods: list[str]) -> None:
    """Success against steps of some methods: the base method dashed, mean and 95% interval over seeds."""
    for method in methods:
        chosen = select(rows, method=method)
        if not chosen:
            continue
        steps, values = curves(chosen, metric)
        if not len(steps):
            continue
        label = f"{LABELS.get(method, METHODS[method])}, {len(values)} seed{'s' if len(values) > 1 else ''}"
        k = 2 * list(METHODS).index(method)  # the strong colours of the map first, then the pale ones
        color = plt.colormaps["tab20"](k % 20 + k // 20)
        axes.plot(steps, values.mean(0), "--" if method == "base" else "-", label=label, color=color)
        axes.fill_between(steps, *interval(values), color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="environment steps, summed over tasks", ylabel=metric.replace("_", " "), ylim=(-0.05, 1.05))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    place = {"loc": "lower right"} if len(methods) < 4 else {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    if axes.lines:
        axes.legend(fontsize="x-small", **place)


def plot_panels(panels: list[tuple[str, str, list[dict[str, str]]]], methods: list[str], path: Path) -> Path:
    """Learning curves, a panel for each (title, metric, rows), four in a line."""
    lines, columns, width = -(-len(panels) // 4), min(len(panels), 4), 4 if len(methods) < 4 else 7
    figure, grid = plt.subplots(
        lines, columns, figsize=(width * columns, 3.4 * lines), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, metric, rows) in zip(grid.flat, panels, strict=False):
        draw_curves(axes, rows, metric, methods)
        axes.set_title(title, fontsize="medium")
    return save(figure, path)


def plot_mixtures(env_id: str, rows: list[dict[str, str]], path: Path) -> Path:
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
    return save(figure, path)


def final(rows: list[dict[str, str]], column: str, end: float = np.inf) -> str:
    """The mean of a column over runs, tasks and the last tenth of the steps, with its 95% interval; for a table."""
    steps, values = curves(rows, column, end)
    values = values[:, steps > 0.9 * steps[-1]].mean(1)
    if len(values) == 1:
        return f"{values[0]:.2f} (1 seed)"
    low, high = interval(values)
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def seeds_solved(rows: list[dict[str, str]], column: str, end: float = np.inf) -> str:
    """On how many seeds a column is 1 at the last step that all have reached; for a table."""
    _, values = curves(rows, column, end)
    return f"{sum(values[:, -1] == 1)} of {len(values)}"


def when_solved(rows: list[dict[str, str]], column: str, end: float = np.inf, for_good: bool = False) -> str:
    """The step of the first evaluation at which a column's mean over tasks is 1; for a table.

    With `for_good` that from which on it is 1 in every evaluation up to `end`. A span from the earliest seed to the
    latest; "(n of m)" if only n of m seeds have such a step.
    """
    steps, values = curves(rows, column, end)
    solved = values == 1  # [R, T]
    if for_good:
        solved = np.logical_and.accumulate(solved[:, ::-1], axis=1)[:, ::-1]
    found = sorted(steps[run.argmax()] for run in solved if run.any())
    if not found:
        return "never"
    text = " to ".join(f"{step:,}" for step in dict.fromkeys((found[0], found[-1])))
    return text if len(found) == len(values) else f"{text} ({len(found)} of {len(values)})"


def comparison(name: str, env_id: str, rows: list[dict[str, str]]) -> list[list[str]]:
    """Lines of the table `overview`: each base method alone and with QMP, by every metric that counts."""
    metrics, lines, sparse = METRICS[env_id], [], SPARSE.get(env_id)
    for metric, script in itertools.product(metrics, BASES):
        both = [select(rows, script=script, method=method) for method in ("base", "qmp")]
        end = reached(*both) if all(both) else 0
        if not end:
            continue
        seeds = [str(len({row["seed"] for row in chosen})) for chosen in both]
        title = f"{name}, {metrics[metric]}" if len(metrics) > 1 else name
        line = [title, f"`{script}.py`, {BASES[script]}", f"{end:,}", "/".join(dict.fromkeys(seeds))]
        line += [final(chosen, metric, end) for chosen in both]
        paper = PAPER.get((env_id, script), ("", ""))
        line += paper if metric == next(iter(metrics)) else ("", "")
        line += [seeds_solved(select(chosen, task=sparse), metric, end) if sparse else "" for chosen in both]
        lines.append(line)
    return lines


def variants(env_id: str, rows: list[dict[str, str]]) -> str:
    """Markdown: the variants of the switch that have been run in an environment, script by script."""
    text, metrics, sparse = "", METRICS[env_id], SPARSE.get(env_id)
    metric = next(iter(metrics))
    for script in varied(rows):
        found = select(rows, script=script)
        end = reached(*(select(found, method=method) for method in dict.fromkeys(row["method"] for row in found)))
        if not end:
            continue
        lines = []
        for method in METHODS:
            chosen = select(found, method=method)
            if chosen:
                seeds = str(len({row["seed"] for row in chosen}))
                line = [LABELS.get(method, f"`{METHODS[method]}`"), seeds]
                line += [final(chosen, column, end) for column in metrics]
                if sparse:
                    sparse_rows = select(chosen, task=sparse)
                    line += [seeds_solved(sparse_rows, metric, end), when_solved(sparse_rows, metric, end)]
                lines.append([*line, when_solved(chosen, metric, end, for_good=True)])
        head = ["", "seeds", *metrics.values()]
        head += ["seeds that solve the sparse task", "sparse task first solved at step"] if sparse else []
        head += ["all tasks solved to the end from step"]
        text += f"\n`{script}.py`, {end:,} steps:\n\n{markdown(head, lines)}"
    return text


def varied(rows: list[dict[str, str]]) -> list[str]:
    """The scripts of which variants of the switch have been run."""
    return [script for script in BASES if {row["method"] for row in select(rows, script=script)} - set(LABELS)]


def reached(*groups: list[dict[str, str]]) -> int:
    """The last step that all runs of all groups have reached, 0 if there is none."""
    steps = [curves(rows, "global_step")[0] for rows in groups]
    common = set.intersection(*map(set, steps))
    return int(max(common, default=0))


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table."""
    if any(len(line) != len(head) for line in lines):
        raise ValueError(f"a line of the table has not the {len(head)} columns of its head")
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, ["---"] * len(head), *lines])


def overview(output: Path) -> str:
    """The README's table: success with QMP and without, beside the paper's."""
    head = ["", "script, base method", "steps", "seeds", "alone", "+ QMP", "paper: alone", "+ QMP"]
    head += ["seeds that solve the sparse task: alone", "+ QMP"]
    lines = [line for found in results(output, ".csv") for line in comparison(*found)]
    return f"{markdown(head, lines)}\n![Success against steps](benchmark/results/success.png)\n"


def details(output: Path) -> str:
    """The tables and figures of benchmark/README.md: variants of the switch, and who acted for whom."""
    text = ""
    for name, env_id, rows in results(output, ".csv"):
        text += f"### {name}\n{variants(env_id, rows)}"
        for ending, caption in (("variants", "Variants of the switch"), ("mixture", "Who acted for whom")):
            if (output / f"{name}_{ending}.png").exists():
                text += f"\n![{caption}](results/{name}_{ending}.png)\n"
        text += "\n"
    return text


def results(output: Path, ending: str) -> list[tuple[str, str, list[dict[str, str]]]]:
    """A name for files, the environment and the rows of every environment and budget that has been run."""
    found = []
    for env_id, budget in dict.fromkeys((row["env"], row["budget"]) for row in read(output / "runs.csv")):
        rows = select(read(output / f"{env_id}{ending}"), budget=budget)
        found.append((env_id if budget == "laptop" else f"{env_id}_{budget}", env_id, rows))
    return found


def insert(path: Path, text: str, name: str) -> None:
    """Put generated text between a file's markers <!-- NAME --> and <!-- end of NAME -->."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, _, rest = path.read_text().partition(start)
    path.write_text(f"{before}{start}\n{text}\n{end}{rest.partition(end)[2]}")


def main(argv: list[str]) -> None:
    """Plot the run that is named, or the newest, or all results."""
    args = tyro.cli(Args, args=argv)
    args.output = args.output.resolve()
    if args.results:
        if not args.runs.is_dir():
            fail(f"no folder {args.runs}; benchmark/run.py makes it")
        try:
            args.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"cannot make the folder {args.output}: {error.strerror}")
        collect(args.runs, args.output)
        panels = []
        for name, env_id, rows in results(args.output, ".csv"):
            metric = next(iter(METRICS[env_id]))
            panel_of = {script: (f"{name}\n{script}.py", metric, select(rows, script=script)) for script in BASES}
            panels += [panel for panel in panel_of.values() if any(row["method"] in LABELS for row in panel[2])]
            several = [panel_of[script] for script in varied(rows)]
            if several:
                print(plot_panels(several, list(METHODS), args.output / f"{name}_variants.png"))
        if panels:
            print(plot_panels(panels, list(LABELS), args.output / "success.png"))
        for name, env_id, rows in results(args.output, "_mixture.csv"):
            if rows:
                print(plot_mixtures(env_id, rows, args.output / f"{name}_mixture.png"))
        if args.output == RESULTS:
            insert(ROOT / "README.md", overview(RESULTS), "results")
            insert(ROOT / "benchmark" / "README.md", details(RESULTS), "results")
        return
    newest = sorted(Path("runs").glob("**/mixture.csv"), key=lambda path: path.stat().st_mtime)
    drawable = [path.parent for path in newest if has_mixture(path.parent)]
    run = args.run or (drawable[-1] if drawable else None)
    if run is None or not has_mixture(run):
        fail(f"no run with a mixture in {run or 'runs/'}")
    print(f"plots in {plot_run(run)}")


if __name__ == "__main__":
    main(sys.argv[1:])
