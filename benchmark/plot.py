"""Tables and pictures of runs, finished or under way.

    python benchmark/plot.py                        # the newest run below runs/
    python benchmark/plot.py runs/a runs/b runs/c   # a comparison; runs may differ by their seeds
    python benchmark/plot.py runs                   # all
    python benchmark/plot.py --collect runs         # run.py's runs into benchmark/results/*.csv
    python benchmark/plot.py --results              # figures and tables of docs/ from these files

Runs that differ by their seed alone become one row of the table and one line of a picture. Of two
runs with the same settings and seed the one that got further counts. The table is printed, and
written beside the pictures: one run's are in its folder's plots/, those of a comparison in plots/
of the folder in which all of its runs lie, under a name made of theirs.
"""

import hashlib
import io
import itertools
import json
import math
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import figures
import numpy as np
import pandas as pd
import tyro
from drawing import (
    CSV,
    MANY_SEEDS,
    SUCCESS,
    Group,
    draw_curve,
    draw_strips,
    draw_table,
    finish_curves,
    interval,
    new_figure,
    save,
)
from run import METHODS, ROOT, SCRIPTS, SETTINGS, SOLID, read_log

RESULTS = ROOT / "benchmark" / "results"
LINES = 5  # in one panel, at most
COLUMNS = 12  # of a heat map of evaluations
NAME_LENGTH = 80
# Arguments that do not change what is learned, apart from the seed and the length of training.
NOT_LEARNING = {"env_id", "seed", "total_timesteps", "run_dir", "resume", "eval_only"}
NOT_LEARNING |= {"cuda", "num_threads", "matmul_precision", "compile", "vectorization"}
NOT_LEARNING |= {"checkpoint_frequency", "eval_frequency", "eval_episodes", "eval_mixture"}
NOT_LEARNING |= {"capture_video", "track", "wandb_project_name", "wandb_entity"}
SWITCH = {"switch_samples", "switch_entropy", "switch_rule", "switch_temperature"}
SWITCH |= {"switch_period", "own_policy_prob"}
# The defaults of the arguments in which methods differ.
DEFAULTS = {
    "qmp": True,
    "switch_samples": 0,
    "switch_entropy": False,
    "switch_rule": "argmax",
    "switch_period": 1,
    "own_policy_prob": 0.0,
    "fully_shared": False,
    "pcgrad": False,
    "double_tanh": False,
    "distill_period": 0,
    "sharing_quantile": 0.0,
}
# For groups whose method's colour is taken, or that have none.
MORE_COLORS = ("#CC79A7", "#8C564B", "black", "#F0E442", "#17BECF")


@dataclass
class Args:
    """Which runs, and what to make of them."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of runs, or folders that have such below them"""
    output: Path | None = None
    """folder for the table and the pictures"""
    collect: bool = False
    """put finished runs of run.py into benchmark/results/*.csv"""
    results: bool = False
    """make this repository's figures and tables from benchmark/results/*.csv"""


@dataclass
class Run:
    """A run's folder, its args.json and the rows of its evaluations.csv."""

    folder: Path
    record: dict
    rows: pd.DataFrame

    def settings(self) -> dict:
        """The script, and those arguments that matter to what is learned."""
        args = self.record["args"]
        ignored = NOT_LEARNING
        if not args.get("qmp", False):
            ignored = NOT_LEARNING | SWITCH
        kept = {name: value for name, value in args.items() if name not in ignored}
        return {"script": self.record["script"]} | kept

    def environment(self) -> tuple:
        return self.record["args"]["env_id"], tuple(self.record["tasks"])

    def last_step(self) -> int:
        return int(self.rows["global_step"].max())


def read_run(folder: Path) -> Run | None:
    """A run with its evaluations that are completely written; None, with a message, without any."""
    try:
        record = json.loads((folder / "args.json").read_text())
        text = (folder / "evaluations.csv").read_text()
        text = text[: text.rfind("\n") + 1]  # the last row may be half written
        rows = pd.read_csv(io.StringIO(text), **CSV)
        size = rows.groupby(["global_step", "acting"])["task"].transform("size")
        rows = rows[size == len(record["tasks"])]
    except (OSError, ValueError, KeyError) as error:
        # Empty files are among these: a run that has just begun, or a full disk.
        print(f"{folder} is left out, it cannot be read: {error}", file=sys.stderr)
        return None
    if rows.empty:
        print(f"{folder} is left out: it has no evaluation yet", file=sys.stderr)
        return None
    return Run(folder, record, rows)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs at or below some folders."""
    paths = set()
    for folder in folders:
        paths.update(path.parent for path in folder.resolve().rglob("args.json"))
    runs = [read_run(path) for path in sorted(paths)]
    return [run for run in runs if run is not None]


def find_method(settings: dict, switch: dict) -> str | None:
    """The name in METHODS of a run's settings; `switch` has an environment's own arguments."""
    for name, method in METHODS.items():
        expected = DEFAULTS | method.arguments
        if method.has_switch():
            expected = DEFAULTS | switch | method.arguments
        found = expected | settings
        if all(found[key] == value for key, value in expected.items()):
            if settings["script"] in method.scripts:
                return name
    return None


def to_words(name: str, value) -> str:
    """An argument as a flag."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if isinstance(value, list):
        value = " ".join(map(str, value))
    return f"--{flag} {value}"


def find_differences(all_settings: list[dict]) -> list[str]:
    """The names of the arguments in which settings differ."""
    names = dict.fromkeys(name for settings in all_settings for name in settings)
    differing = []
    for name in names:
        values = {str(settings[name]) for settings in all_settings if name in settings}
        if len(values) > 1:
            differing.append(name)
    return differing


def name_groups(all_settings: list[dict]) -> list[str]:
    """A title for each of some settings, which tells it from the others."""
    differing = find_differences(all_settings)
    titles = []
    for settings in all_settings:
        method = find_method(settings, {})
        if method:
            title = METHODS[method].title
        else:
            title = "QMP" if settings.get("qmp", False) else "without QMP"
        if "script" in differing:
            script = settings["script"]
            title = f"{SCRIPTS.get(script, script)}, {title}"
        for name in differing:
            is_told = name in ("script", "qmp") or (method and name in DEFAULTS)
            if name in settings and not is_told:
                title += f" {to_words(name, settings[name])}"
        titles.append(title)
    return titles


def group_runs(runs: list[Run]) -> list[tuple[Group, Run]]:
    """The groups of an environment's runs, each with one of its runs, in the order of METHODS."""
    found = {}
    for run in sorted(runs, key=Run.last_step, reverse=True):
        key = json.dumps(run.settings(), sort_keys=True)
        seeds = found.setdefault(key, {})
        seed = run.record["args"]["seed"]
        if seed in seeds:
            other = seeds[seed].folder
            print(f"{run.folder} is left out: {other} has its settings and seed", file=sys.stderr)
        else:
            seeds[seed] = run
    firsts = [next(iter(seeds.values())) for seeds in found.values()]
    titles = name_groups([run.settings() for run in firsts])
    groups = []
    for first, title, seeds in zip(firsts, titles, found.values(), strict=True):
        evaluations = {seed: seeds[seed].rows for seed in sorted(seeds)}
        groups.append((Group(title, evaluations), first))
    groups.sort(key=lambda pair: order_of(pair[1]))
    return groups


def order_of(run: Run) -> tuple[int, int]:
    """Groups are shown script by script, in the order of METHODS."""
    settings = run.settings()
    method = find_method(settings, {})
    place = list(METHODS).index(method) if method else len(METHODS)
    scripts = list(SCRIPTS)
    if settings["script"] in scripts:
        return scripts.index(settings["script"]), place
    return len(scripts), place


def color_groups(pairs: list[tuple[Group, Run]]) -> list[Group]:
    """Groups of one picture in their methods' colours, or in others where these are taken."""
    used = set()
    more = iter(MORE_COLORS)
    groups = []
    for group, run in pairs:
        method = find_method(run.settings(), {})
        style = (METHODS[method].color, METHODS[method].linestyle) if method else None
        if style is None or style in used:
            style = (next(more), SOLID)
        used.add(style)
        groups.append(Group(group.title, group.seeds, *style))
    return groups


def success_of(env_id: str, group: Group) -> str:
    """The column that counts as success."""
    columns = next(iter(group.seeds.values())).columns
    name = SUCCESS.get(env_id, "success_rate")
    return name if name in columns else "success_rate"


def quantities_of(env_id: str, tasks: Sequence[str], groups: list[Group]) -> list[str]:
    """The columns that pictures show: success, return, an environment's own metrics."""
    rows = next(iter(groups[0].seeds.values()))
    skipped = {"global_step", "acting", "task", "episodic_length", "agreement", "gap"}
    skipped |= {f"acted/{task}" for task in tasks}
    first = [success_of(env_id, groups[0]), "episodic_return"]
    names = first + [name for name in rows.columns if name not in skipped and name not in first]
    return [name for name in names if not all(group.curve(name).empty for group in groups)]


def summarise(env_id: str, groups: list[Group]) -> pd.DataFrame:
    """The table: a row for each group."""
    rows = []
    for group in groups:
        success = success_of(env_id, group)
        row = {"environment": env_id, "group": group.title}
        row["seeds"] = " ".join(map(str, group.seeds))
        row["steps"] = group.end()
        row["interval"] = "95% bootstrap" if len(group.seeds) >= MANY_SEEDS else "range"
        quantities = {
            "success": group.final(success),
            "return": group.final("episodic_return"),
            "success_over_training": group.over_training(success),
            "success_of_mixture": group.final(success, acting="mixture"),
        }
        for name, values in quantities.items():
            low, high = interval(values) if len(values) else (math.nan, math.nan)
            row[name] = values.mean() if len(values) else math.nan
            row[f"{name}_low"] = low
            row[f"{name}_high"] = high
        rows.append(row)
    return pd.DataFrame(rows)


def format_cell(row: pd.Series, name: str, digits: int) -> str:
    """A mean, with its interval where there are several seeds."""
    if math.isnan(row[name]):
        return "-"
    cell = f"{row[name]:.{digits}f}"
    if " " in row["seeds"]:
        cell += f" [{row[f'{name}_low']:.{digits}f}, {row[f'{name}_high']:.{digits}f}]"
    return cell


def print_table(env_id: str, table: pd.DataFrame) -> None:
    """The table in words."""
    shown = pd.DataFrame({"group": table["group"]})
    shown["seeds"] = table["seeds"].str.split().str.len()
    shown["steps"] = table["steps"].map("{:,}".format)
    columns = {
        "final success": ("success", 2),
        "final return": ("return", 1),
        "success over training": ("success_over_training", 2),
        "final success of mixtures": ("success_of_mixture", 2),
    }
    for title, (name, digits) in columns.items():
        shown[title] = [format_cell(row, name, digits) for _, row in table.iterrows()]
    shown = shown.loc[:, (shown != "-").any()]
    print(f"\n{env_id}\n{shown.to_string(index=False)}")
    if table["seeds"].str.contains(" ").any():
        print(
            f"[..]: the range of the seeds, or from {MANY_SEEDS} seeds on a 95% bootstrap interval"
        )


def draw_learning(env_id: str, groups: list[Group], quantities: list[str]):
    """How do the groups learn? A panel for each quantity, mean over tasks."""
    columns = min(len(quantities), 3)
    rows = math.ceil(len(quantities) / columns)
    one_evaluation = all(len(group.curve("episodic_return")) == 1 for group in groups)
    width = 1.2 + 2.6 * columns
    height = 0.8 + 0.28 * len(groups) if one_evaluation else 2.6
    figure, grid = new_figure(columns, rows, height, width)
    for axes, name in zip(grid.flat, quantities, strict=False):
        title = name.replace("_", " ")
        if one_evaluation:
            draw_strips(axes, groups, [group.final(name) for group in groups], title)
            continue
        for group in groups:
            draw_curve(axes, group, name)
        is_share = name in ("success_rate", *SUCCESS.values())
        finish_curves(axes, title, "mean over tasks", is_share)
    for axes in grid.flat[len(quantities) :]:
        axes.remove()
    figure.suptitle(env_id)
    if not one_evaluation:
        handles, labels = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=min(len(labels), 3))
    return figure


def draw_tasks(env_id: str, tasks: Sequence[str], groups: list[Group]):
    """Which tasks are solved? By group at the end of training; of one group alone over training."""
    name = success_of(env_id, groups[0])
    if groups[0].curve(name).empty:
        name = "episodic_return"
    if len(groups) == 1:
        (group,) = groups
        curves = {task: group.curve(name, [task]).mean(axis=1) for task in tasks}
        values = pd.DataFrame(curves).T
        every = math.ceil(values.shape[1] / COLUMNS)
        values = values.iloc[:, ::-every].iloc[:, ::-1]  # with the last evaluation
        values.columns = [f"{step:,}" for step in values.columns]
        title = "by step of training"
    else:
        columns = {}
        for group in groups:
            columns[group.title] = [group.final(name, [task]).mean() for task in tasks]
        values = pd.DataFrame(columns)
        title = "in the last 10% of training"
    width = max(4.5, 2.2 + 0.5 * values.shape[1])
    figure, grid = new_figure(1, 1, 1.5 + 0.24 * len(tasks), width)
    if name == "episodic_return":
        draw_table(grid[0, 0], values.to_numpy(), tasks, values.columns)
    else:
        draw_table(grid[0, 0], values.to_numpy(), tasks, values.columns, top=1)
    grid[0, 0].set_title(f"{name.replace('_', ' ')} {title}")
    figure.suptitle(env_id)
    return figure


def draw_acting(env_id: str, tasks: Sequence[str], groups: list[Group]):
    """Who acted for whom? Of one group alone for each third of its training. None if all own."""
    panels = {}
    for group in groups:
        end = group.end()
        if len(groups) > 1:
            panels[group.title] = group.shares(tasks)
            continue
        for low, high in itertools.pairwise(np.linspace(0, end, 4)):
            title = f"steps {math.ceil(low):,} to {math.floor(high):,}"
            panels[title] = group.shares(tasks, low, high)
    mixed = {}
    for title, shares in panels.items():
        is_known = np.isfinite(shares).any()  # not while all actions are random
        if is_known and not np.allclose(shares, np.eye(len(tasks))):
            mixed[title] = shares
    if not mixed:
        return None
    width = 1.5 + len(mixed) * max(2.2, 0.24 * len(tasks))
    figure, grid = new_figure(len(mixed), 1, 1.8 + 0.24 * len(tasks), width, sharey=True)
    for axes, (title, shares) in zip(grid.flat, mixed.items(), strict=True):
        draw_table(axes, shares, tasks, tasks, top=1)
        axes.set_title(textwrap.fill(title, 24))
        axes.set_xlabel("policy that acted")
    grid[0, 0].set_ylabel("task")
    figure.suptitle(f"{env_id}: share of steps")
    return figure


def draw_switch(env_id: str, tasks: Sequence[str], groups: list[Group]):
    """Does the switch know, or guess? None if the runs did not log it."""
    groups = [group for group in groups if not group.curve("agreement").empty]
    if not groups:
        return None
    figure, ((left, right),) = new_figure(2)
    for group in groups:
        draw_curve(left, group, "agreement")
        draw_curve(right, group, "gap")
    left.axhline(1 / len(tasks), color="0.4", linestyle=":", linewidth=1)
    finish_curves(left, "agreement of the twin critics (dotted: chance)")
    finish_curves(right, "gap to the own policy", is_share=False)
    figure.suptitle(env_id)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3)
    return figure


def plot_environment(env_id: str, tasks: Sequence[str], runs: list[Run], folder: Path) -> None:
    """Print the table of an environment's runs, then write it and the pictures."""
    pairs = group_runs(runs)
    table = summarise(env_id, [group for group, _ in pairs])
    print_table(env_id, table)
    name = env_id.replace(":", "-")
    write_table(table, folder / f"{name}-table.csv")
    for start in range(0, len(pairs), LINES):
        groups = color_groups(pairs[start : start + LINES])
        figures = {
            "learning": draw_learning(env_id, groups, quantities_of(env_id, tasks, groups)),
            "tasks": draw_tasks(env_id, tasks, groups),
            "acting": draw_acting(env_id, tasks, groups),
            "switch": draw_switch(env_id, tasks, groups),
        }
        part = f"-{start // LINES + 1}" if len(pairs) > LINES else ""
        for question, figure in figures.items():
            if figure is not None:
                save(figure, folder / f"{name}-{question}{part}.png")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table, and say so."""
    verb = "replaced" if path.exists() else "wrote"
    table.to_csv(path, index=False, float_format="%.5g")
    print(f"{verb} {path}")


def find_output(runs: list[Run], roots: Sequence[Path], output: Path | None) -> Path:
    """The folder for the table and the pictures, which has a name made of the comparison's."""
    roots = [root.resolve() for root in roots]
    if output is None and roots == [runs[0].folder]:
        return roots[0] / "plots"
    common = Path(os.path.commonpath(roots))  # a ValueError on two disks of Windows
    if output is None and common == Path(common.anchor):
        raise ValueError("the runs have no folder in common")
    names = [str(root.relative_to(common)).replace(os.sep, "-") for root in roots]
    name = "_vs_".join(names)
    if len(roots) == 1:
        name = common.name
    if len(name) > NAME_LENGTH:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{names[0][:NAME_LENGTH]}_vs_{len(names) - 1}_more_{digest}"
    return (output or common / "plots") / name


def plot_runs(runs: list[Run], roots: Sequence[Path], output: Path | None) -> int:
    """A table and pictures for every environment among the runs. Returns the exit code."""
    environments = {}
    for run in runs:
        environments.setdefault(run.environment(), []).append(run)
    try:
        folder = find_output(runs, roots, output)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"plot.py: error: {error}; choose a folder with --output", file=sys.stderr)
        return 2
    for k, ((env_id, tasks), of_environment) in enumerate(environments.items()):
        # An environment may have had other tasks in older runs.
        same_name = [other for other, _ in list(environments)[:k] if other == env_id]
        part = folder / f"other-tasks-{len(same_name)}" if same_name else folder
        part.mkdir(exist_ok=True)
        plot_environment(env_id, tasks, of_environment, part)
    return 0


def collect(runs: list[Run]) -> None:
    """Put runs that benchmark/run.py has finished into the CSV files of benchmark/results/."""
    evaluations = {}
    records = []
    for run in runs:
        args = run.record["args"]
        env_id = args["env_id"]
        setting = SETTINGS.get(env_id)
        method = find_method(run.settings(), setting.switch if setting else {})
        if run.last_step() < args["total_timesteps"] or method is None:
            print(f"{run.folder} is left out: not finished, or no method of run.py")
            continue
        key = {"script": run.record["script"], "method": method, "seed": args["seed"]}
        rows = run.rows.copy()
        for place, (name, value) in enumerate(key.items()):
            rows.insert(place, name, value)
        evaluations.setdefault(env_id, []).append(rows)
        log = read_log(run.folder)
        hours = [float(line.split()[-2]) for line in log if line.startswith("exit code ")]
        commands = [line[2:] for line in log if line.startswith("$ ")]
        record = key | {"env_id": env_id, "global_step": run.last_step()}
        record["hours"] = round(sum(hours), 2) if hours else math.nan
        record["git_commit"] = run.record["git_commit"]
        record["cpu"] = run.record.get("cpu")
        record |= run.record["versions"]
        record["command"] = commands[-1] if commands else ""
        records.append(pd.DataFrame([record]))
    for env_id, parts in evaluations.items():
        path = RESULTS / f"{env_id.replace(':', '-')}.csv"
        merge(path, parts, ["script", "method", "seed"])
    if records:
        merge(RESULTS / "runs.csv", records, ["env_id", "script", "method", "seed"])


def merge(path: Path, new: list[pd.DataFrame], key: list[str]) -> None:
    """Put rows of runs into a CSV file, in place of those of the same runs that got less far."""
    parts = list(new)
    if path.exists():
        parts.insert(0, pd.read_csv(path, **CSV))
    rows = pd.concat(dict(enumerate(parts)), names=["part"]).reset_index("part")
    ends = rows.groupby([*key, "part"], as_index=False)["global_step"].max()
    ends = ends.sort_values(["global_step", "part"])
    furthest = ends.drop_duplicates(key, keep="last")
    rows = rows.merge(furthest[[*key, "part"]]).drop(columns="part")
    rows = rows.sort_values(key, kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(path, index=False, float_format="%.5g")
    print(f"wrote {path}")


def main(args: Args) -> int:
    """Plot. Returns the exit code."""
    roots = args.runs or (Path("runs"),)
    if args.results and not args.collect:
        figures.write_figures()
        figures.write_tables()
        return 0
    runs = find_runs(roots)
    if not runs:
        print(f"plot.py: error: no run in {', '.join(map(str, roots))}", file=sys.stderr)
        return 2
    if args.collect:
        collect(runs)
        if args.results:
            figures.write_figures()
            figures.write_tables()
        return 0
    if not args.runs:
        runs = [max(runs, key=lambda run: (run.folder / "evaluations.csv").stat().st_mtime)]
        roots = [runs[0].folder]
    return plot_runs(runs, roots, args.output)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
