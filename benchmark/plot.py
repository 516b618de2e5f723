"""Plots of runs, finished or under way: success, return and an environment's own metrics, and who acted for whom.

    python benchmark/plot.py                         # the newest run below runs/: every task, and their mean
    python benchmark/plot.py runs/a runs/b runs/c    # several: runs that differ by their seed alone become one line
    python benchmark/plot.py runs                    # all
    python benchmark/plot.py --results               # what benchmark/run.py has run -> results of this repository

Writes a picture plots-ENVIRONMENT.png into the run's folder, or where several runs have their folders. Lines are means
over the seeds that have reached a step, with a 95% interval (percentile bootstrap over seeds); of runs with the same
settings and seed the one that has got further counts. With --results the runs, by default those below runs/benchmark/,
go into benchmark/results/ENVIRONMENT.csv and runs.csv, and figures and tables are made of these.
"""

import io
import json
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # there may be no screen
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tyro  # noqa: E402
from matplotlib.ticker import EngFormatter  # noqa: E402
from run import METHODS, ROOT, Script, log_of  # noqa: E402
from scipy.stats import bootstrap, mannwhitneyu, trim_mean  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

RESULTS = ROOT / "benchmark" / "results"
OWN = "own policy's share of acting"
FEW = 6  # tasks that have a colour each, and room for numbers
SUCCESS = {"MultistageReacher-v0": "first_stage"}  # what the paper calls success, if not success_rate
# Final success in the paper's curves: of the base method, with QMP.
PAPER = {
    "MultistageReacher-v0": {"qmp_sac": (0.80, 1.00), "qmp_mtsac": (0.45, 0.80), "qmp_uds": (0.38, 0.32)},
    "Maze-v0": {"qmp_sac": (0.60, 0.72), "qmp_mtsac": (0.90, 1.00), "qmp_uds": (0.55, 0.63)},
    "MetaWorldCDS-v0": {"qmp_mtsac": (0.97, 0.97)},
    "MetaWorldMT10-v3": {"qmp_sac": (0.71, 0.80), "qmp_mtsac": (0.70, 0.70), "qmp_uds": (0.80, 0.84)},
    "MetaWorldMT50-v3": {"qmp_mtsac": (0.36, 0.42)},
    "KitchenMT10-v0": {"qmp_sac": (0.52, 0.76), "qmp_mtsac": (0.28, 0.47), "qmp_uds": (0.63, 0.53)},
}


@dataclass
class Args:
    """Arguments."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of runs, or folders that have such below them"""
    output: Path | None = None
    """folder of the pictures"""
    results: bool = False
    """rewrite the results of this repository: benchmark/results/, docs/results.md and the table in the README"""


# Reading.
def read_run(folder: Path) -> tuple[dict, pd.DataFrame]:
    """A run's args.json, and the rows of its evaluations.csv: of every evaluation that is completely written."""
    record = json.loads((folder / "args.json").read_text())
    text = (folder / "evaluations.csv").read_text()
    text = text[: text.rfind("\n") + 1] or "global_step,acting,task\n"
    columns = {"dtype": {"task": str, "acting": str}, "keep_default_na": False, "na_values": [""]}
    rows = pd.read_csv(io.StringIO(text), float_precision="round_trip", **columns)
    size = rows.groupby(["global_step", "acting"])["task"].transform("size")
    return record, rows[size == len(record["tasks"])]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The folders of runs at or below some folders."""
    found = {path.parent for folder in folders for path in folder.resolve().rglob("evaluations.csv")}
    return sorted(path for path in found if (path / "args.json").exists())


def settings(record: dict) -> dict:
    """The script of a run, and those of its arguments that make it learn as it does: all from learning_starts on."""
    names = list(record["args"])
    args = {name: record["args"][name] for name in names[names.index("learning_starts") :]}
    if not args["qmp"]:  # then these say nothing
        args = {name: value for name, value in args.items() if not name.startswith(("switch_", "own_policy_"))}
    return {"script": record["script"]} | args


def label(group: dict, groups: Sequence[dict]) -> str:
    """The flags in which a group's settings differ from those of most others; its script, if they do not."""
    flags = []
    for name, value in group.items():
        counts = Counter(str(other[name]) for other in groups if name in other)
        most = [text for text, count in counts.items() if count == max(counts.values())]
        if name == "script" and len(counts) > 1:
            flags.append(value)
        elif name != "script" and most != [str(value)]:
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            no = "no-" if value is False else ""
            flags.append(f"--{no}{name.replace('_', '-')}" + f" {text}" * (not isinstance(value, bool)))
    return " ".join(flags) or group["script"]


def read_groups(folders: Sequence[Path]) -> dict[tuple[str, ...], dict[str, pd.DataFrame]]:
    """For every environment (its name, its tasks) the rows of runs, by the label of their settings."""
    runs, found = {}, {}
    for folder in folders:
        record, rows = read_run(folder)
        if rows.empty:
            print(f"{folder} has no evaluation yet", file=sys.stderr)
            continue
        env_id, seed, tasks = record["args"]["env_id"], record["args"]["seed"], record["tasks"]
        own = rows.filter(like="acted/").to_numpy()[np.arange(len(rows)), rows["task"].map(tasks.index)]
        run = rows["global_step"].max(), str(folder), rows.assign(**{OWN: own, "seed": seed})
        runs.setdefault(((env_id, *tasks), json.dumps(settings(record)), seed), []).append(run)
    for (environment, group, _), same in runs.items():
        *others, (_, longest, rows) = sorted(same, key=lambda run: run[:2])
        for _, folder, _ in others:
            print(f"{folder} is left out: {longest} has the same settings and seed", file=sys.stderr)
        found.setdefault(environment, {}).setdefault(group, []).append(rows)
    for environment, groups in found.items():
        every = [json.loads(group) for group in groups]
        named = [(label(group, every), pd.concat(rows)) for group, rows in zip(every, groups.values(), strict=True)]
        found[environment] = {f"{name} ({seeds_of(rows)})": rows for name, rows in named}
    return found


def seeds_of(rows: pd.DataFrame) -> str:
    """How many seeds a line has, and from where on it has fewer."""
    ends = rows.groupby("seed")["global_step"].max()
    fewer = f", fewer after step {ends.min():,}" if ends.nunique() > 1 else ""
    return f"{len(ends)} seeds{fewer}" if len(ends) > 1 else f"seed {ends.index[0]}"


# Statistics.
def curves(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over tasks of a column: index global_step, a column for each seed, NaN where it has not got to."""
    table = rows.pivot_table(column, "global_step", "seed")
    return table.interpolate("index", limit_area="inside").dropna(how="all")


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95% percentile bootstrap interval of the mean over runs: values [R, ...] -> low, high [...]."""
    if len(values) == 1:
        return values[0], values[0]
    found = bootstrap((values,), np.mean, axis=0, method="percentile", n_resamples=2000, rng=0).confidence_interval
    return found.low, found.high


def improvement(better: np.ndarray, base: np.ndarray) -> float:
    """Probability that a run of one method beats one of another (Agarwal et al., 2021): [R, N], [R', N], ties half."""
    pairs = [mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(better.T, base.T, strict=True)]
    return float(np.mean(pairs))


def mixture_of(rows: pd.DataFrame) -> np.ndarray:
    """Mean over runs and evaluations of who acted in training: [N, P]; NaN if none has."""
    rows = rows[rows["acting"] == "own"]
    return rows.groupby("task", sort=False)[list(rows.filter(like="acted/"))].mean().to_numpy()


# Drawing.
def draw_mean(axes, rows: pd.DataFrame, column: str, band: bool = True, **style) -> None:
    """A line of a column's mean over tasks and seeds, with a band of its interval over seeds."""
    table = curves(rows, column)
    if table.empty:
        return
    axes.plot(table.index, table.mean(axis=1), **{"marker": "o" if len(table) == 1 else None} | style)
    if band:
        parts = [part.dropna(axis=1) for _, part in table.groupby(list(table.notna().to_numpy().T))]  # by who got there
        bounds = pd.concat([pd.DataFrame(interval(part.to_numpy().T), columns=part.index) for part in parts], axis=1)
        bounds = bounds.sort_index(axis=1)
        axes.fill_between(bounds.columns, *bounds.to_numpy(), color=style["color"], alpha=0.2, linewidth=0)
    axes.set(title=column.replace("_", " "), xlabel="environment steps, summed over tasks")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if column in SUCCESS.values() or "success" in column or column == OWN:
        axes.set_ylim(-0.05, 1.05)


def draw_groups(axes, groups: dict[str, pd.DataFrame], column: str, colors: dict[str, str]) -> None:
    """A line for each group of runs, dashed where mixtures acted."""
    for name, rows in groups.items():
        for acting, style in (("own", {"label": name}), ("mixture", {"label": f"{name}, mixture", "linestyle": "--"})):
            draw_mean(axes, rows[rows["acting"] == acting], column, color=colors[name], **style)


def draw_tasks(axes, rows: pd.DataFrame, column: str) -> None:
    """A line for each task, the mean over seeds, and a bold mean over tasks."""
    rows = rows[rows["acting"] == "own"]
    tasks = list(rows["task"].unique())
    for k, task in enumerate(tasks):
        few = {"color": f"C{k}", "label": task, "marker": "o", "markersize": 3}
        many = {"color": "0.7", "linewidth": 0.7, "label": "tasks" if k == 0 else None}
        draw_mean(axes, rows[rows["task"] == task], column, band=False, **(few if len(tasks) <= FEW else many))
    draw_mean(axes, rows, column, color="black", linewidth=2.5, label="mean", zorder=3)


def draw_mixture(axes, mixture: np.ndarray, tasks: Sequence[str]) -> None:
    """A heat map of shares [N, P]: task i's row says who acted for it."""
    image = axes.imshow(mixture, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    size = min(9, 330 / len(tasks))
    axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=size)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=size)
    axes.set(xlabel="acting policy, share of steps", ylabel="task")
    for (i, j), share in np.ndenumerate(mixture) if len(tasks) <= FEW else ():
        color = "white" if share > 0.5 else "black"
        axes.text(j, i, f"{share:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.figure.colorbar(image, ax=axes, shrink=0.7)


def grid(figure, count: int, columns: int) -> list:
    """So many axes, in rows."""
    axes = list(figure.subplots(-(-count // columns), columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_axis_off()
    return axes[:count]


def draw(path: Path, title: str, panels: Sequence, mixtures: dict[str, np.ndarray], tasks: Sequence[str]) -> Path:
    """A picture: `panels`, functions that draw on axes, above `mixtures`. Returns its path."""
    side, columns = min(9, 3.4 + 0.12 * len(tasks)), min(len(panels), 4)
    of_mixtures = max(1, min(len(mixtures), int(max(4.8 * columns, 17) // (side + 1))))
    width = max(4.8 * columns, 8, (side + 1) * of_mixtures * bool(mixtures))
    heights = [3.6 * -(-len(panels) // columns) + 0.6, side * -(-len(mixtures) // of_mixtures)]
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    figure.suptitle(title, fontweight="bold")
    top, bottom = figure.subfigures(2, 1, height_ratios=heights) if mixtures else (figure, None)

    handles = {}
    for axes, panel in zip(grid(top, len(panels), columns), panels, strict=True):
        panel(axes)
        handles |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    of_legend = max(1, int(width * 10 / (max(map(len, handles), default=0) + 8)))
    top.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=of_legend)
    cells = grid(bottom, len(mixtures), of_mixtures) if mixtures else []
    for axes, (name, mixture) in zip(cells, mixtures.items(), strict=True):
        draw_mixture(axes, mixture, tasks)
        axes.set_title(textwrap.fill(f"who acted: {name}", int(side * 10), break_on_hyphens=False), fontsize="medium")
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def plot_runs(folders: Sequence[Path], output: Path) -> list[Path]:
    """A picture for every environment among the runs. Returns their paths."""
    paths = []
    for (env_id, *tasks), groups in read_groups(folders).items():
        rows, title = pd.concat(groups.values()), env_id
        skipped = {"global_step", "acting", "task", "episodic_length", "seed", *rows.filter(like="acted/")}
        columns = [name for name in rows if name not in skipped and rows[name].notna().any()]
        mixtures = {name: mixture_of(rows) for name, rows in groups.items()}
        if len(groups) == 1:
            title += f", {next(iter(groups))}"
            panels = [partial(draw_tasks, rows=rows, column=column) for column in columns]
            if len(tasks) <= 2 * FEW:
                acted = rows[rows[f"acted/{tasks[0]}"].notna() & (rows["acting"] == "own")]
                thirds = [steps for steps in np.array_split(np.sort(acted["global_step"].unique()), 3) if len(steps)]
                titles = [f"evaluations at {steps[0]:,} to {steps[-1]:,}" for steps in thirds]
                parts = [mixture_of(acted[acted["global_step"].isin(steps)]) for steps in thirds]
                mixtures = dict(zip(titles, parts, strict=True))
        else:
            colors = {name: f"C{k % 10}" for k, name in enumerate(groups)}
            panels = [partial(draw_groups, groups=groups, column=column, colors=colors) for column in columns]
        mixtures = {k: m for k, m in mixtures.items() if np.isfinite(m).all() and not np.allclose(m, np.eye(len(m)))}
        output.mkdir(parents=True, exist_ok=True)
        paths.append(draw(output / f"plots-{env_id.replace(':', '-')}.png", title, panels, mixtures, tasks))
    return paths


# Results of this repository.
def gather(folders: Sequence[Path]) -> None:
    """Put runs of benchmark/run.py into the CSV files of benchmark/results/."""
    evaluations, records = {}, []
    for folder in folders:
        record, rows = read_run(folder)
        _, script, method, seed = [*folder.name.split("__"), *4 * [""]][:4]
        if rows.empty or method not in METHODS:
            continue
        run, env_id = {"script": script, "method": method, "seed": int(seed)}, record["args"]["env_id"]
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        logged = [tag for tag in events.Tags()["scalars"] if tag.startswith("switch/advantage/")]
        advantage = {(e.step, tag.split("/", 2)[2], "own"): e.value for tag in logged for e in events.Scalars(tag)}
        keys = zip(rows["global_step"], rows["task"], rows["acting"], strict=True)
        rows = rows.assign(advantage=[advantage.get(key) for key in keys], **run)
        evaluations.setdefault(env_id, []).append(rows[[*run, *rows.columns.difference(run, sort=False)]])
        log = log_of(folder)
        hours = sum(float(line.split()[-2]) for line in log if line.startswith("exit code"))
        run |= {"env_id": env_id, "global_step": rows["global_step"].max(), "hours": round(hours, 2)}
        run |= {"git_commit": record["git_commit"], **record["versions"], "command": log[0][2:] if log else ""}
        records.append(pd.DataFrame([run]))
    for env_id, new in evaluations.items():
        merge(RESULTS / f"{env_id.replace(':', '-')}.csv", new, ["script", "method", "seed"])
    if records:
        merge(RESULTS / "runs.csv", records, ["env_id", "script", "method", "seed"])


def merge(path: Path, new: list[pd.DataFrame], key: list[str]) -> None:
    """Put rows of runs into a CSV file, in place of those of the same runs, unless these had got further."""
    old = [pd.read_csv(path)] if path.exists() else []
    rows = pd.concat([part.assign(rank=k) for k, part in enumerate([*old, pd.concat(new)])])
    rows["rank"] = rows.groupby([*key, "rank"])["global_step"].transform("max") + 0.5 * rows["rank"]
    rows = rows[rows["rank"] == rows.groupby(key)["rank"].transform("max")].drop(columns="rank")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.sort_values(key, kind="stable").to_csv(path, index=False, float_format="%.5g")


class Comparison:
    """The runs of a script in an environment, up to the step that all of them have reached."""

    def __init__(self, env_id: str, script: str, rows: pd.DataFrame):
        rows = rows[rows["script"] == script]
        self.env_id, self.script, self.column = env_id, script, SUCCESS.get(env_id, "success_rate")
        self.end = int(rows.groupby(["method", "seed"])["global_step"].max().min())
        self.rows, self.tasks = rows[rows["global_step"] <= self.end], list(rows["task"].unique())
        self.methods = [method for method in METHODS if method in set(rows["method"])]
        self.paper = dict(zip(("base", "qmp"), PAPER.get(env_id, {}).get(script, ()), strict=False))

    def of(self, method: str) -> pd.DataFrame:
        """Rows of a method."""
        return self.rows[self.rows["method"] == method]

    def final(self, method: str, acting: str = "own") -> np.ndarray:
        """Success in the last tenth of the steps: [R, N]."""
        rows = self.of(method)
        rows = rows[(rows["acting"] == acting) & (rows["global_step"] > 0.9 * self.end)]
        return rows.pivot_table(self.column, "seed", "task").to_numpy()

    def cells(self, method: str, acting: str = "own") -> list[str]:
        """Final success of a method: mean over runs and tasks with its interval over runs; and the paper's."""
        if not len(values := self.final(method, acting)):
            return ["", ""]
        low, high = interval(values.mean(1))
        brackets = f"[{low:.2f}, {high:.2f}]" if len(values) > 1 else "(1 seed)"
        return [f"{values.mean():.2f} {brackets}", f"{self.paper[method]:.2f}" if method in self.paper else ""]

    def tables(self) -> str:
        """Final success of the methods; and the median step of every task's first evaluation without a failure."""
        finals, solved = [], []
        for method in self.methods:
            values, rows = self.final(method), self.of(method)
            iqm = f"{trim_mean(values.ravel(), 0.25):.2f}" if len(values) >= 5 else ""
            against = "base" in self.methods and method != "base"
            better = f"{improvement(values, self.final('base')):.2f}" if against else ""
            (own, paper), (mixture, _) = self.cells(method), self.cells(method, "mixture")
            finals.append([method, str(len(values)), own, iqm, mixture, better, paper])
            first = rows[(rows[self.column] == 1) & (rows["acting"] == "own")]
            first = first.groupby(["task", "seed"])["global_step"].min().groupby("task")
            steps = {task: f"{steps.median():,.0f} ({len(steps)} of {len(values)})" for task, steps in first}
            solved.append([method, *(steps.get(task, "never") for task in self.tasks)])
        head = ["", "seeds", "success [95%]", "IQM", "of its mixtures", "probability to beat base", "paper"]
        text = table(head, finals)
        if len(self.tasks) <= 2 * FEW:
            text += f"\nSteps until no episode of a task fails:\n\n{table(['', *self.tasks], solved)}"
        return text

    def draw(self, axes, column: str, methods: Sequence[str]) -> None:
        """Curves of methods, and the paper's final values dotted."""
        colors = {method: f"C{k}" for k, method in enumerate(METHODS)}
        groups = {method: self.of(method) for method in methods if method in self.methods}
        draw_groups(axes, groups, column, colors)
        axes.set_title(f"{self.env_id}, {self.script}\n{column.replace('_', ' ')}", fontsize="medium")
        for method in groups.keys() & self.paper.keys() if column == self.column else ():
            axes.axhline(self.paper[method], color=colors[method], linestyle=":", label=f"{method}, paper")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without columns that are empty."""
    kept = [k for k in range(len(head)) if any(line[k] for line in lines)]
    rows = [[row[k] for k in kept] for row in (head, ["---"] * len(head), *lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def insert(path: Path, text: str) -> None:
    """Put text between the marks <!-- results --> and <!-- end of results --> of a file."""
    marks = r"(<!-- results -->\n).*(<!-- end of results -->)"
    path.write_text(re.sub(marks, lambda found: f"{found[1]}\n{text}\n{found[2]}", path.read_text(), flags=re.S))


def write_results() -> None:
    """Figures and tables from the CSV files of benchmark/results/."""
    records = pd.read_csv(RESULTS / "runs.csv")
    text, overview, panels = "", [], []
    for env_id in records["env_id"].unique():
        name = env_id.replace(":", "-")
        rows = pd.read_csv(RESULTS / f"{name}.csv")
        comparisons = [Comparison(env_id, script, rows) for script in Script.__args__ if script in set(rows["script"])]
        text += f"## {env_id}\n"
        for found in comparisons:
            chosen = records[(records["env_id"] == env_id) & (records["script"] == found.script)]
            commands = "\n".join(chosen.drop_duplicates("method")["command"].astype(str))
            text += f"\n### {found.script}.py, {found.end:,} steps\n\n```\n{commands}\n```\n\n{found.tables()}"
            cells = [found.cells(method) if method in found.methods else ["", ""] for method in ("base", "qmp")]
            overview.append([env_id, f"`{found.script}.py`", f"{found.end:,}", *cells[0], *cells[1]])
            panels.append(partial(found.draw, column=found.column, methods=("base", "qmp")))
        parts = [partial(found.draw, column=found.column, methods=METHODS) for found in comparisons]
        switches = [method for method in METHODS if method.startswith("qmp")]
        parts += [partial(found.draw, column="advantage", methods=switches) for found in comparisons]
        mixtures = {found.script: mixture_of(found.of("qmp")) for found in comparisons if "qmp" in found.methods}
        print(draw(RESULTS / f"{name}.png", env_id, parts, mixtures, comparisons[0].tasks))
        text += f"\n![{env_id}](../benchmark/results/{name}.png)\n\n"
    print(draw(RESULTS / "success.png", "Success of base methods, and with QMP", panels, {}, ()))
    insert(ROOT / "docs" / "results.md", text.rstrip() + "\n")
    head = ["", "script", "steps", "base", "paper: base", "qmp", "paper: qmp"]
    insert(ROOT / "README.md", f"{table(head, overview)}\n![Success against steps](benchmark/results/success.png)\n")


def main(args: Args) -> int:
    """Plot. Returns the exit code."""
    roots = args.runs or (ROOT / "runs" / "benchmark" if args.results else Path("runs"),)
    folders = find_runs(roots)
    if not folders:
        print(f"plot.py: error: no run in {', '.join(map(str, roots))}; qmp_sac.py makes one", file=sys.stderr)
        return 2
    if args.results:
        gather(folders)
        write_results()
        return 0
    if not args.runs:
        roots = folders = [max(folders, key=lambda folder: (folder / "evaluations.csv").stat().st_mtime)]
    common = Path(os.path.commonpath([root.resolve() for root in roots]))
    for path in plot_runs(folders, args.output or common):
        print(f"plots in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
