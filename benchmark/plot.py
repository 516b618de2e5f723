"""Plots of runs, finished or under way: success, return and an environment's own metrics, and who acted for whom.

    python benchmark/plot.py runs/a                  # one run: every task, and their mean
    python benchmark/plot.py runs/a runs/b runs/c    # several: runs that differ by their seed alone become one line
    python benchmark/plot.py                         # all runs below runs/
    python benchmark/plot.py --results               # what benchmark/run.py has run -> results of this repository

Writes a picture plots-ENVIRONMENT.png into the run's folder, or where several runs have their folders. Lines of several
seeds are means with a 95% interval (percentile bootstrap over seeds). With --results the runs, by default those below
runs/benchmark/, go into benchmark/results/ENVIRONMENT.csv and runs.csv, and figures and tables are made of these.
"""

import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # whatever the user's; there may be no screen
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import tyro  # noqa: E402
from matplotlib.ticker import EngFormatter  # noqa: E402
from run import METHODS, ROOT, Script, log_of  # noqa: E402
from scipy.stats import bootstrap, mannwhitneyu, trim_mean  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

RESULTS = ROOT / "benchmark" / "results"
FEW = 6  # tasks that have a colour each, and room for numbers
SUCCESS = {"MultistageReacher-v0": "first_stage"}  # what the paper calls success, if not success_rate
# Final success in the paper's curves, of the base method and with QMP.
PAPER = {
    ("MultistageReacher-v0", "qmp_sac"): {"base": 0.80, "qmp": 1.00},
    ("MultistageReacher-v0", "qmp_mtsac"): {"base": 0.45, "qmp": 0.80},
    ("MultistageReacher-v0", "qmp_uds"): {"base": 0.38, "qmp": 0.32},
    ("Maze-v0", "qmp_sac"): {"base": 0.60, "qmp": 0.72},
    ("Maze-v0", "qmp_mtsac"): {"base": 0.90, "qmp": 1.00},
    ("Maze-v0", "qmp_uds"): {"base": 0.55, "qmp": 0.63},
    ("MetaWorldCDS-v0", "qmp_mtsac"): {"base": 0.97, "qmp": 0.97},
    ("MetaWorldMT10-v3", "qmp_sac"): {"base": 0.71, "qmp": 0.80},
    ("MetaWorldMT10-v3", "qmp_mtsac"): {"base": 0.70, "qmp": 0.70},
    ("MetaWorldMT10-v3", "qmp_uds"): {"base": 0.80, "qmp": 0.84},
    ("MetaWorldMT50-v3", "qmp_mtsac"): {"base": 0.36, "qmp": 0.42},
    ("KitchenMT10-v0", "qmp_sac"): {"base": 0.52, "qmp": 0.76},
    ("KitchenMT10-v0", "qmp_mtsac"): {"base": 0.28, "qmp": 0.47},
    ("KitchenMT10-v0", "qmp_uds"): {"base": 0.63, "qmp": 0.53},
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
    found = {path.parent for folder in folders for path in folder.rglob("evaluations.csv")}
    return sorted(path for path in found if (path / "args.json").exists())


def settings(record: dict) -> dict:
    """The script of a run, and those of its arguments that make it learn as it does: all from learning_starts on."""
    names = list(record["args"])
    args = {name: record["args"][name] for name in names[names.index("learning_starts") :]}
    if not args["qmp"]:  # then these say nothing
        args = {name: value for name, value in args.items() if not name.startswith(("switch_", "own_policy_"))}
    return {"script": record.get("script", "run")} | args


def label(group: dict, groups: Sequence[dict]) -> str:
    """How a group's settings differ from those of others, as command-line flags."""
    words = []
    for name, value in group.items():
        if len({str(other[name]) for other in groups if name in other}) > 1:
            flag = name.replace("_", "-")
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            switch = f"--{'' if value else 'no-'}{flag}"
            words.append(value if name == "script" else switch if isinstance(value, bool) else f"--{flag} {text}")
    return " ".join(words) or group["script"]


def metrics_of(rows: pd.DataFrame) -> list[str]:
    """Columns to plot: success, if the environment tells it, return, and its own metrics."""
    names = [name for name in rows.columns[rows.columns.get_loc("task") + 1 :] if not name.startswith("acted/")]
    return [name for name in names if name not in ("episodic_length", "run") and rows[name].notna().any()]


def own_share(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a column more: the share of the task's own policy in acting."""
    acted = rows.filter(like="acted/").set_axis(rows["task"].unique(), axis=1)
    own = acted.to_numpy()[np.arange(len(rows)), acted.columns.get_indexer(rows["task"])]
    return rows.assign(**{"own policy's share of acting": own})


# Statistics.
def curves(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean over tasks of a column: index global_step, a column for each run, up to where the shortest run has got."""
    table = rows.pivot_table(index="global_step", columns="run", values=column)
    return table.interpolate("index", limit_area="inside").dropna()


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


# Drawing.
def draw_groups(axes, groups: dict[str, pd.DataFrame], column: str, colors: dict | None = None) -> None:
    """A line for each group of runs, its mean over tasks and runs, with an interval; dashed where mixtures acted."""
    for k, (name, rows) in enumerate(groups.items()):
        color = colors[name] if colors else f"C{k % 10}"
        for acting, style in (("own", "-"), ("mixture", "--")):
            table = curves(rows[rows["acting"] == acting], column)
            if len(table):
                seeds = f" ({table.shape[1]} seeds)" if table.shape[1] > 1 and not colors else ""
                text = f"{name}{seeds}" + ", mixture" * (acting == "mixture")
                marker = "o" if len(table) == 1 else None
                axes.plot(table.index, table.mean(axis=1), style, marker=marker, color=color, label=text)
                axes.fill_between(table.index, *interval(table.to_numpy().T), color=color, alpha=0.2, linewidth=0)
    finish(axes, column)


def draw_tasks(axes, rows: pd.DataFrame, column: str) -> None:
    """A line for each task, the mean over runs, and a bold mean over tasks."""
    rows = rows[rows["acting"] == "own"]
    tasks = rows["task"].unique()
    for k, task in enumerate(tasks):
        table = curves(rows[rows["task"] == task], column)
        few = {"color": f"C{k}", "label": task, "marker": "o", "markersize": 3}
        many = {"color": "0.7", "linewidth": 0.7, "label": "tasks" if k == 0 else None}
        axes.plot(table.index, table.mean(axis=1), **(few if len(tasks) <= FEW else many))
    table = curves(rows, column)
    axes.plot(table.index, table.mean(axis=1), color="black", linewidth=2.5, label="mean", zorder=3)
    finish(axes, column)


def finish(axes, column: str) -> None:
    """Names and scale of a panel of curves."""
    axes.set(title=column.replace("_", " "), xlabel="environment steps, summed over tasks")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if column in SUCCESS.values() or "success" in column or "share" in column:
        axes.set_ylim(-0.05, 1.05)


def draw_mixture(axes, mixture: np.ndarray, tasks: Sequence[str]) -> None:
    """A heat map of shares [N, P]: task i's row says who acted for it."""
    image = axes.imshow(mixture, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    size = min(9, 330 / len(tasks))
    axes.set_xticks(range(len(tasks)), tasks, rotation=90, fontsize=size)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=size)
    axes.set(xlabel="acting policy, share of steps", ylabel="task")
    if len(tasks) <= FEW:
        for (i, j), share in np.ndenumerate(mixture):
            color = "white" if share > 0.5 else "black"
            axes.text(j, i, f"{share:.2f}", ha="center", va="center", color=color, fontsize=8)
    axes.figure.colorbar(image, ax=axes, shrink=0.7)


def mixture_of(rows: pd.DataFrame) -> np.ndarray:
    """Mean over runs and evaluations of who acted in training: [N, P]; NaN if none has."""
    rows = rows[rows["acting"] == "own"]
    acted = rows.groupby("task", sort=False)[list(rows.filter(like="acted/"))].mean()
    return acted.to_numpy()


def draw(path: Path, panels: Sequence, mixtures: dict[str, np.ndarray], tasks: Sequence[str]) -> Path:
    """A picture: `panels`, functions that draw on axes, above `mixtures`. Returns its path."""
    width, side = min(len(panels), 4), min(9, 3.4 + 0.12 * len(tasks))
    lines, columns = -(-len(panels) // width), max(1, int(max(4.8 * width, 17) // (side + 1)))
    heights = [3.6 * lines, side * -(-len(mixtures) // columns)]
    columns = min(columns, max(1, len(mixtures)))
    size = (max(4.8 * width, (side + 1) * columns if mixtures else 0), sum(heights))
    figure = plt.figure(figsize=size, layout="constrained")
    top, *bottom = figure.subfigures(2, 1, height_ratios=heights).flat if mixtures else [figure]
    grid = list(top.subplots(lines, width, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        panel(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    handles = {name: line for axes in grid for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns_of_legend = max(1, int(size[0] * 10 / (max(map(len, handles), default=0) + 8)))
    top.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns_of_legend)
    for part in bottom:
        grid = list(part.subplots(-(-len(mixtures) // columns), columns, squeeze=False).flat)
        for axes, (title, mixture) in zip(grid, mixtures.items(), strict=False):
            draw_mixture(axes, mixture, tasks)
            axes.set_title(f"who acted: {title}", fontsize="medium")
        for axes in grid[len(mixtures) :]:
            axes.set_axis_off()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def plot_runs(folders: Sequence[Path], output: Path) -> list[Path]:
    """A picture for every environment among the runs. Returns their paths."""
    environments = {}
    for folder in folders:
        record, rows = read_run(folder)
        if rows.empty:
            print(f"{folder} has no evaluation yet", file=sys.stderr)
            continue
        groups = environments.setdefault((record["args"]["env_id"], *record["tasks"]), {})
        group = settings(record)
        groups.setdefault(json.dumps(group), []).append(own_share(rows).assign(run=str(folder)))
    paths = []
    for (env_id, *tasks), found in environments.items():
        every = [json.loads(group) for group in found]
        groups = {label(group, every): pd.concat(rows) for group, rows in zip(every, found.values(), strict=True)}
        columns = list(dict.fromkeys(name for rows in groups.values() for name in metrics_of(rows)))
        if len(groups) == 1:
            ((name, rows),) = groups.items()
            panels = [partial(draw_tasks, rows=rows, column=column) for column in columns]
            mixtures = {name: mixture_of(rows)}
            if len(tasks) <= 2 * FEW:
                acted = rows[rows[f"acted/{tasks[0]}"].notna()]
                thirds = [steps for steps in np.array_split(acted["global_step"].unique(), 3) if len(steps)]
                titles = [f"evaluations at {steps[0]:,} to {steps[-1]:,}" for steps in thirds]
                parts = [mixture_of(acted[acted["global_step"].isin(steps)]) for steps in thirds]
                mixtures = dict(zip(titles, parts, strict=True))
        else:
            panels = [partial(draw_groups, groups=groups, column=column) for column in columns]
            mixtures = {name: mixture_of(rows) for name, rows in groups.items()}
        mixtures = {k: m for k, m in mixtures.items() if np.isfinite(m).all() and not np.allclose(m, np.eye(len(m)))}
        output.mkdir(parents=True, exist_ok=True)
        paths.append(draw(output / f"plots-{env_id.replace(':', '-')}.png", panels, mixtures, tasks))
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
        places = zip(rows["global_step"], rows["task"], rows["acting"], strict=True)
        rows = rows.assign(advantage=[advantage.get(place) for place in places], **run)
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
        self.env_id, self.script, self.column = env_id, script, SUCCESS.get(env_id, "success_rate")
        rows = rows[rows["script"] == script].assign(run=lambda rows: rows["method"] + rows["seed"].astype(str))
        self.end = int(rows.groupby("run")["global_step"].max().min())
        self.rows = rows[rows["global_step"] <= self.end]
        self.tasks = list(rows["task"].unique())
        self.methods = [method for method in METHODS if method in set(rows["method"])]

    def of(self, method: str, acting: str = "own") -> pd.DataFrame:
        """Rows of a method."""
        return self.rows[(self.rows["method"] == method) & (self.rows["acting"] == acting)]

    def final(self, method: str, acting: str = "own") -> np.ndarray:
        """Success in the last tenth of the steps: [R, N]."""
        rows = self.of(method, acting)
        return rows[rows["global_step"] > 0.9 * self.end].pivot_table(self.column, "run", "task").to_numpy()

    def mean(self, method: str, acting: str = "own") -> str:
        """Final success: mean over runs and tasks with its interval over runs, for a table."""
        if method not in self.methods or not len(values := self.final(method, acting)):
            return ""
        low, high = interval(values.mean(1))
        return f"{values.mean():.2f} " + (f"[{low:.2f}, {high:.2f}]" if len(values) > 1 else "(1 seed)")

    def paper(self, method: str) -> str:
        """The paper's final success, for a table."""
        values = PAPER.get((self.env_id, self.script), {})
        return f"{values[method]:.2f}" if method in values else ""

    def tables(self) -> str:
        """Final success of the methods; and the median step of every task's first evaluation without a failure."""
        finals, solved = [], []
        for method in self.methods:
            values, rows = self.final(method), self.of(method)
            iqm = f"{trim_mean(values.ravel(), 0.25):.2f}" if len(values) >= 5 else ""
            against = "base" in self.methods and method != "base"
            better = f"{improvement(values, self.final('base')):.2f}" if against else ""
            cells = [str(len(values)), self.mean(method), iqm, self.mean(method, "mixture"), better]
            finals.append([method, *cells, self.paper(method)])
            first = rows[rows[self.column] == 1].groupby(["task", "run"])["global_step"].min().groupby("task")
            cells = {task: f"{steps.median():,.0f} ({len(steps)} of {len(values)})" for task, steps in first}
            solved.append([method, *(cells.get(task, "never") for task in self.tasks)])
        head = ["", "seeds", "success [95%]", "IQM", "of its mixtures", "probability to beat base", "paper"]
        text = table(head, finals)
        if len(self.tasks) <= 2 * FEW:
            text += f"\nSteps until no episode of a task fails:\n\n{table(['', *self.tasks], solved)}"
        return text

    def draw(self, axes, column: str, methods: Sequence[str]) -> None:
        """Curves of methods, and the paper's final values dotted."""
        chosen = [method for method in methods if method in self.methods]
        groups = {method: pd.concat([self.of(method, acting) for acting in ("own", "mixture")]) for method in chosen}
        colors = {method: f"C{k}" for k, method in enumerate(METHODS)}
        draw_groups(axes, groups, column, colors)
        axes.set_title(f"{self.env_id}, {self.script}\n{column.replace('_', ' ')}", fontsize="medium")
        for method, value in PAPER.get((self.env_id, self.script), {}).items():
            if method in groups and column == self.column:
                axes.axhline(value, color=colors[method], linestyle=":", label=f"{method}, paper")


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, without columns that are empty."""
    kept = [k for k in range(len(head)) if any(line[k] for line in lines)]
    rows = [[row[k] for k in kept] for row in (head, ["---"] * len(head), *lines)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def insert(path: Path, text: str) -> None:
    """Put text between the marks <!-- results --> and <!-- end of results --> of a file."""
    before, mark, rest = path.read_text().partition("<!-- results -->\n")
    _, end, after = rest.partition("<!-- end of results -->")
    if mark and end:
        path.write_text(f"{before}{mark}\n{text}\n{end}{after}")
    else:
        print(f"{path} has no place for results", file=sys.stderr)


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
            line = [env_id, f"`{found.script}.py`", f"{found.end:,}"]
            line += [cell for method in ("base", "qmp") for cell in (found.mean(method), found.paper(method))]
            overview.append(line)
            panels.append(partial(found.draw, column=found.column, methods=("base", "qmp")))
        parts = [partial(found.draw, column=found.column, methods=METHODS) for found in comparisons]
        switches = [method for method in METHODS if method.startswith("qmp")]
        parts += [partial(found.draw, column="advantage", methods=switches) for found in comparisons]
        mixtures = {found.script: mixture_of(found.of("qmp")) for found in comparisons if "qmp" in found.methods}
        print(draw(RESULTS / f"{name}.png", parts, mixtures, comparisons[0].tasks))
        text += f"\n![{env_id}](../benchmark/results/{name}.png)\n\n"
    print(draw(RESULTS / "success.png", panels, {}, ()))
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
    common = Path(os.path.commonpath([root.resolve() for root in roots]))
    for path in plot_runs(folders, args.output or common):
        print(f"plots in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
