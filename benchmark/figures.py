"""The figures and tables of README.md and docs/, from benchmark/results/*.csv.

Each figure answers one question. What has not been run is left out of it.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from drawing import (
    CSV,
    SUCCESS,
    Group,
    draw_curve,
    draw_strips,
    draw_table,
    finish_curves,
    interval,
    new_figure,
    p_value,
    save,
)
from run import GREY, METHODS, ROOT, SCRIPTS

RESULTS = ROOT / "benchmark" / "results"
REACHER = "MultistageReacher-v0"
POINT = "PointReach-v0"
MAZE = "Maze-v0"
WALKER = "Walker2dMT4-v0"
KITCHEN = "KitchenMT10-v0"
ENVIRONMENTS = (REACHER, POINT, "PointReach2-v0", "PointReach9-v0", MAZE, KITCHEN, WALKER)
MAZE_STEPS = 600  # of an episode that does not succeed
STAGES = "stages_completed"
SPARSE = "reach-1-2-0-sparse"
STAY = "stay"  # starts at its goal, so that its first stage is free
REACHING = ("reach-0-1-2", "reach-0-1-3", "reach-1-3-2", SPARSE)
POINTS = {2: "PointReach2-v0", 5: POINT, 9: "PointReach9-v0"}  # by number of tasks
KNOWING = (  # runs that logged agreement and gap
    (POINT, "qmp_sac", "qmp"),
    ("PointReach9-v0", "qmp_sac", "qmp"),
    (REACHER, "qmp_sac", "qmp-period-10"),
    (MAZE, "qmp_mtsac", "qmp"),
)
SOLVED = 0.9  # success of every task in one evaluation

# The paper's curves, digitised from its main figure (within 1.5 points): success by steps.
PAPER = {
    (REACHER, "qmp_sac"): {
        "base": {250e3: 0.37, 300e3: 0.46, 400e3: 0.60, 500e3: 0.68, 600e3: 0.73, 750e3: 0.79}
        | {1e6: 0.80, 2e6: 0.80},
        "qmp": {250e3: 0.58, 300e3: 0.72, 400e3: 0.88, 500e3: 0.97, 600e3: 0.97, 750e3: 0.98}
        | {1e6: 0.99, 2e6: 1.00},
    },
    (REACHER, "qmp_mtsac"): {
        "base": {250e3: 0.45, 500e3: 0.50, 750e3: 0.55, 1e6: 0.52, 1.5e6: 0.50, 2e6: 0.45},
        "qmp": {250e3: 0.62, 500e3: 0.68, 750e3: 0.67, 1e6: 0.64, 1.5e6: 0.76, 2e6: 0.81},
    },
    (REACHER, "qmp_uds"): {
        "base": {250e3: 0.09, 500e3: 0.06, 750e3: 0.25, 1e6: 0.36, 1.5e6: 0.36, 2e6: 0.36},
        "qmp": {250e3: 0.15, 500e3: 0.22, 750e3: 0.30, 1e6: 0.29, 1.5e6: 0.29, 2e6: 0.31},
    },
    (MAZE, "qmp_mtsac"): {
        "base": {500e3: 0.14, 750e3: 0.25, 1e6: 0.34, 1.5e6: 0.48, 2e6: 0.56, 3e6: 0.63},
        "qmp": {500e3: 0.14, 750e3: 0.25, 1e6: 0.42, 1.5e6: 0.67, 2e6: 0.82, 3e6: 0.94},
    },
    (KITCHEN, "qmp_mtsac"): {
        "base": {500e3: 0.03, 750e3: 0.08, 1e6: 0.10, 1.5e6: 0.20, 2e6: 0.34, 5e6: 0.28},
        "qmp": {500e3: 0.13, 750e3: 0.25, 1e6: 0.31, 1.5e6: 0.42, 2e6: 0.60, 5e6: 0.47},
    },
    (KITCHEN, "qmp_sac"): {
        "base": {750e3: 0.09, 1e6: 0.13, 1.5e6: 0.13, 2e6: 0.18, 3e6: 0.36, 5e6: 0.52},
        "qmp": {750e3: 0.13, 1e6: 0.19, 1.5e6: 0.29, 2e6: 0.39, 3e6: 0.57, 5e6: 0.76},
    },
}


# READING


@functools.cache
def read_evaluations(env_id: str) -> pd.DataFrame:
    """The committed evaluations of an environment; none if there is no file."""
    path = RESULTS / f"{env_id.replace(':', '-')}.csv"
    if not path.exists():
        return pd.DataFrame(columns=["script", "method", "seed", "global_step", "acting", "task"])
    return pd.read_csv(path, **CSV)


def get_group(env_id: str, script: str, name: str) -> Group | None:
    """The runs of a method; None if there are none."""
    rows = read_evaluations(env_id)
    rows = rows[(rows["script"] == script) & (rows["method"] == name)]
    if rows.empty:
        return None
    method = METHODS[name]
    seeds = {int(seed): part for seed, part in rows.groupby("seed")}
    return Group(method.title, seeds, method.color, method.linestyle)


def get_groups(env_id: str, script: str, names, end: int | None = None) -> dict[str, Group]:
    """The groups of some methods until a step, without those of which no seed has reached it.

    By default it is the step that all have reached.
    """
    groups = {}
    for name in names:
        group = get_group(env_id, script, name)
        if group:
            groups[name] = group
    if not groups:
        return {}
    end = end or min(group.end() for group in groups.values())
    cut = {name: group.until(end) for name, group in groups.items()}
    return {name: group for name, group in cut.items() if group.seeds}


def find_ends(env_id: str, script: str) -> list[int]:
    """The steps at which methods are compared: that which all have reached, and that which three
    seeds of the base method and of QMP have reached, if it is a later one.
    """
    rows = read_evaluations(env_id)
    rows = rows[rows["script"] == script]
    if rows.empty:
        return []
    last = rows.groupby(["method", "seed"])["global_step"].max()
    ends = {int(last.min())}
    longest = []
    for name in ("base", "qmp"):
        if name in last:
            of_seeds = sorted(last[name], reverse=True)
            longest.append(int(of_seeds[:3][-1]))
    if longest:
        ends.add(max(min(longest), min(ends)))
    return sorted(ends)


def success_of(env_id: str) -> str:
    return SUCCESS.get(env_id, "success_rate")


def tasks_of(env_id: str) -> list[str]:
    return list(read_evaluations(env_id)["task"].unique())


def describe_seeds(groups) -> str:
    """Their number, which may differ between groups."""
    counts = sorted({len(group.seeds) for group in groups})
    if counts == [1]:
        return "1 seed"
    if len(counts) == 1:
        return f"{counts[0]} seeds"
    return f"{counts[0]}–{counts[-1]} seeds"


def paper_at(env_id: str, script: str, method: str, step: float) -> float:
    """The paper's success at a step, between its values; NaN where they do not reach."""
    curve = PAPER.get((env_id, script), {}).get(method)
    if not curve:
        return math.nan
    outside = {"left": math.nan, "right": math.nan}
    return float(np.interp(step, list(curve), list(curve.values()), **outside))


# FIGURES: each returns a figure, or None if its runs are missing


def draw_paper(axes, env_id: str, script: str, end: float) -> None:
    """The paper's values up to a step, dotted."""
    for method, curve in PAPER.get((env_id, script), {}).items():
        steps = [step for step in curve if step <= end]
        values = [curve[step] for step in steps]
        style = {"color": METHODS[method].color, "linestyle": ":", "linewidth": 1}
        label = f"paper, {METHODS[method].title}"
        axes.plot(steps, values, "o", mfc="white", markersize=4, label=label, **style)


def draw_panel(
    axes, env_id: str, script: str, names, title: str, end=None, paper=False, note: str = ""
) -> None:
    """Success of some methods of one script, mean over tasks, each as far as all its seeds are."""
    groups = []
    for name in names:
        group = get_group(env_id, script, name)
        if group:
            group = group.until(end or group.end())
            groups.append(group)
            draw_curve(axes, group, success_of(env_id))
    if paper:
        draw_paper(axes, env_id, script, max(group.end() for group in groups))
    title += f" ({describe_seeds(groups)})"
    if note:
        title += f"\n{note}"  # a second line
    finish_curves(axes, title)


def add_legend(figure, grid, ncols: int = 3) -> None:
    """One legend below all panels, with each label once."""
    found = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=ncols)


def draw_main():
    """Does QMP help separate agents, and is it the paper's curve?"""
    pair = ("base", "qmp")
    ends = find_ends(REACHER, "qmp_sac")
    figure, grid = new_figure(1 + len(ends), sharey=True)
    for axes, end in zip(grid.flat, ends, strict=False):
        draw_panel(axes, REACHER, "qmp_sac", pair, "MultistageReacher", end, paper=True)
    draw_panel(grid[0, -1], POINT, "qmp_sac", pair, "PointReach")
    grid[0, 0].set_ylabel("success, mean over tasks")
    add_legend(figure, grid, 4)
    return figure


def draw_controls():
    """Does the gain need Q?"""
    names = ("base", "qmp", "qmp-eq2", "qmp-period-10", "qmp-uniform", "qmp-uniform-period-10")
    names += ("qmp-uniform-own-80", "qmp-uniform-own-60", "qmp-uniform-period-10-own-80")
    groups = list(get_groups(REACHER, "qmp_sac", names).values())
    first = success_of(REACHER)
    over_training = [group.over_training(first, REACHING) for group in groups]
    columns = {
        "first stage,\nreaching\ntasks": [group.final(first, REACHING) for group in groups],
        "first stage,\nsparse task": [group.final(first, [SPARSE]) for group in groups],
        "over training,\nreaching\ntasks": over_training,
        "stages,\nall tasks": [group.final(STAGES) for group in groups],
        "stages,\ntask stay": [group.final(STAGES, [STAY]) for group in groups],
    }
    figure, grid = new_figure(len(columns), 1, 0.9 + 0.28 * len(groups), sharey=True)
    for axes, (title, values) in zip(grid.flat, columns.items(), strict=True):
        draw_strips(axes, groups, values, title)
        highest = 3 if title.startswith("stages") else 1
        axes.set(xlim=(0, 1.04 * highest), xticks=[0, highest])
    return figure


def draw_switches():
    """Which switch?"""
    names = ("qmp-period-10", "qmp", "qmp-eq2", "base")
    figure, grid = new_figure(2, sharey=True)
    draw_panel(grid[0, 0], REACHER, "qmp_sac", names, "MultistageReacher")
    draw_panel(grid[0, 1], POINT, "qmp_sac", names, "PointReach")
    grid[0, 0].set_ylabel("success, mean over tasks")
    add_legend(figure, grid, 4)
    return figure


def draw_random():
    """How do random policies in place of the switch learn?"""
    names = ("base", "qmp", "qmp-period-10", "qmp-uniform", "qmp-uniform-period-10")
    figure, grid = new_figure(2, sharey=True)
    draw_panel(grid[0, 0], REACHER, "qmp_sac", names, "MultistageReacher")
    draw_panel(grid[0, 1], POINT, "qmp_sac", names, "PointReach")
    grid[0, 0].set_ylabel("success, mean over tasks")
    add_legend(figure, grid, 3)
    return figure


def draw_methods():
    """Does QMP add to other ways of sharing?"""
    variants = {"qmp_mtsac": "pcgrad", "qmp_dnc": "distill", "qmp_uds": "quantile-90"}
    words = {"pcgrad": "PCGrad", "distill": "distillation", "quantile-90": "a filter"}
    figure, grid = new_figure(3, 2, 2.5, sharey=True)
    cases = itertools.product((REACHER, POINT), variants.items())
    for axes, (env_id, (script, variant)) in zip(grid.flat, cases, strict=True):
        title = SCRIPTS[script][0].upper() + SCRIPTS[script][1:]
        note = ""
        if get_group(env_id, script, f"qmp-{variant}"):
            note = f"dashed: with {words[variant]}"
        names = ("base", "qmp", f"base-{variant}", f"qmp-{variant}")
        draw_panel(axes, env_id, script, names, title, note=note)
    grid[0, 0].set_ylabel("MultistageReacher, success")
    grid[1, 0].set_ylabel("PointReach, success")
    for axes in grid[0]:
        axes.set_xlabel("")
    add_legend(figure, grid[:1, :1])  # of the first panel, which has no dashed lines
    return figure


def draw_double_tanh():
    """Where does the gap of the paper's shared networks come from?"""
    names = ("base", "qmp", "base-double-tanh", "qmp-double-tanh", "qmp-double-tanh-own-999")
    groups = list(get_groups(REACHER, "qmp_mtsac", names).values())
    first = success_of(REACHER)
    figure, grid = new_figure(2, 1, 0.7 + 0.28 * len(groups), sharey=True)
    draw_strips(grid[0, 0], groups, [group.final(first) for group in groups], "final success")
    means = [group.over_training(first) for group in groups]
    draw_strips(grid[0, 1], groups, means, "mean over training")
    for axes in grid.flat:
        axes.set_xlim(0, 1.04)
    return figure


def draw_selection():
    """Whose policies are used?"""
    group = get_groups(REACHER, "qmp_sac", ("qmp",), 600_000)["qmp"]
    tasks = tasks_of(REACHER)
    periods = {"first 240k steps": (0, 240_000), "last 160k steps": (440_000, 600_000)}
    figure, grid = new_figure(2, 1, 2.9, sharey=True)
    for axes, (title, period) in zip(grid.flat, periods.items(), strict=True):
        low, high = period
        image = draw_table(axes, group.shares(tasks, low, high), tasks, tasks, top=1)
        axes.set_title(title)
        axes.set_xlabel("policy that acts")
    grid[0, 0].set_ylabel("task")
    figure.colorbar(image, ax=grid, label="share of steps", shrink=0.9)
    return figure


def steps_until_solved(group: Group, column: str, tasks) -> list[float]:
    """Steps per task until every task succeeds, for the seeds in which this happens."""
    curves = [group.curve(column, [task]) for task in tasks]
    worst = pd.concat(curves).groupby(level=0).min()  # [steps, seeds]
    found = []
    for seed in worst:
        solved = worst.index[worst[seed] >= SOLVED]
        if len(solved):
            found.append(solved[0] / len(tasks))
    return found


def draw_scaling():
    """Does it scale with the number of tasks?"""
    names = ("base", "qmp", "qmp-uniform", "qmp-uniform-period-10", "qmp-uniform-period-10-own-80")
    middle = (len(names) - 1) / 2
    figure, ((left, right),) = new_figure(2)
    numbers = [N for N, env_id in POINTS.items() if len(read_evaluations(env_id))]
    if len(numbers) < 2:
        return None
    for k, name in enumerate(names):
        method = METHODS[name]
        style = {"color": method.color, "linestyle": method.linestyle, "label": method.title}
        shares = {}
        steps = {}
        for N in numbers:
            group = get_group(POINTS[N], "qmp_sac", name)
            if group is None:
                continue
            found = steps_until_solved(group, "success_rate", tasks_of(POINTS[N]))
            shares[N] = len(found) / len(group.seeds)
            x = N + 0.15 * (k - middle)  # beside each other
            dots = {"color": method.color, "markersize": 3, "alpha": 0.6}
            right.plot([x] * len(found), found, "o", **dots)
            if found:
                steps[x] = np.mean(found)
        left.plot(shares.keys(), shares.values(), marker="o", markersize=4, **style)
        right.plot(steps.keys(), steps.values(), **style)
    left.set_title("seeds that solve every task")
    right.set_title("steps per task until then")
    left.set(ylim=(-0.03, 1.05), ylabel="share of seeds")
    right.set(ylim=(0, None))
    for axes in (left, right):
        axes.set(xlabel="number of tasks N (PointReach)", xticks=numbers)
    add_legend(figure, np.array([left]))
    return figure


def to_paper_axis(group: Group) -> Group:
    """The maze's steps as the authors count them.

    They deal whole episodes round robin, so that a task that is solved costs fewer steps. A task
    that is not has had as many steps there as here.
    """
    lengths = group.curve("episodic_length").mean(axis=1)
    steps = np.diff(lengths.index, prepend=0)
    scale = (lengths / MAZE_STEPS * steps).cumsum()
    seeds = {}
    for seed, rows in group.seeds.items():
        seeds[seed] = rows.assign(global_step=rows["global_step"].map(scale))
    return replace(group, seeds=seeds)


def draw_navigation():
    """Navigation: does QMP help shared networks in the maze?"""
    names = ("base", "qmp", "qmp-uniform")
    groups = get_groups(MAZE, "qmp_mtsac", names)
    if not groups:
        return None
    figure, ((left, right),) = new_figure(2, sharey=True)
    draw_panel(left, MAZE, "qmp_mtsac", names, "Maze, our steps", paper=True)
    for name in groups:
        draw_curve(right, to_paper_axis(get_group(MAZE, "qmp_mtsac", name)), "success_rate")
    draw_paper(right, MAZE, "qmp_mtsac", right.get_xlim()[1])
    finish_curves(right, "Maze, the paper's steps")
    left.set_ylabel("success, mean over tasks")
    add_legend(figure, np.array([left]), 5)
    return figure


def draw_manipulation():
    """Manipulation: does QMP help shared networks in the kitchen?"""
    names = ("base", "qmp")
    if not get_groups(KITCHEN, "qmp_mtsac", names):
        return None
    figure, grid = new_figure(1)
    draw_panel(grid[0, 0], KITCHEN, "qmp_mtsac", names, "Kitchen", paper=True)
    grid[0, 0].set_ylabel("success, mean over tasks")
    figure.legend(loc="outside right center")
    return figure


def draw_locomotion():
    """Locomotion: does QMP help separate agents with Walker2d?"""
    groups = get_groups(WALKER, "qmp_sac", ("base", "qmp"))
    if not groups:
        return None
    figure, grid = new_figure(2)
    for group in groups.values():
        draw_curve(grid[0, 0], group, "episodic_return")
        draw_curve(grid[0, 1], group, "success_rate")
    seeds = describe_seeds(groups.values())
    finish_curves(grid[0, 0], f"return ({seeds})", "mean over tasks", is_share=False)
    finish_curves(grid[0, 1], "survival of 1,000 steps")
    add_legend(figure, grid)
    return figure


def draw_knowing():
    """Does the switch know, or guess?"""
    found = {}
    for env_id, script, method in KNOWING:
        group = get_group(env_id, script, method)
        if group and group.having("agreement").seeds:
            found[env_id] = group.having("agreement")
    if not found:
        return None
    figure, grid = new_figure(2, len(found), 2)
    for (env_id, group), (left, right) in zip(found.items(), grid, strict=True):
        tasks = tasks_of(env_id)
        sparse = [task for task in tasks if task.endswith("-sparse")]
        others = [task for task in tasks if task not in sparse]
        title = "mean of the other tasks" if sparse else "mean over tasks"
        alone = replace(group, title="sparse task", color=METHODS["qmp"].color)
        rest = replace(group, title=title, color="black")
        for axes, column in ((left, "agreement"), (right, "gap")):
            draw_curve(axes, alone, column, sparse)
            draw_curve(axes, rest, column, others)
        left.axhline(1 / len(tasks), color=GREY, linestyle=":")
        right.axhline(0, color=GREY, linestyle=":")
        name = env_id.partition("-v")[0]
        seeds = describe_seeds([group])
        finish_curves(left, f"{name}, {group.title} ({seeds})", "agreement")
        finish_curves(right, "", "gap", is_share=False)
    add_legend(figure, grid)
    return figure


FIGURES: dict[str, Callable] = {
    "main": draw_main,
    "controls": draw_controls,
    "random": draw_random,
    "switches": draw_switches,
    "methods": draw_methods,
    "double-tanh": draw_double_tanh,
    "selection": draw_selection,
    "scaling": draw_scaling,
    "navigation": draw_navigation,
    "manipulation": draw_manipulation,
    "locomotion": draw_locomotion,
    "knowing": draw_knowing,
}


# TABLES


def format_steps(steps: int) -> str:
    if steps >= 1e6:
        return f"{steps / 1e6:g}M"
    return f"{steps / 1e3:g}k"


def format_number(value: float) -> str:
    """Two digits; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:.2f}"


def format_p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def mean_of(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def to_markdown(cells: list[dict[str, str]]) -> str:
    """A table in Markdown, without columns that are empty."""
    table = pd.DataFrame(cells).fillna("")
    table = table.loc[:, (table != "").any()]
    lines = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def describe(env_id: str, script: str, end: int, groups: dict[str, Group]) -> list[dict[str, str]]:
    """A row for each method of a script, whose seeds have been trained until `end`."""
    success = success_of(env_id)
    cells = []
    for name, group in groups.items():
        final = group.final(success)
        row = {"base method": SCRIPTS[script], "method": group.title}
        row["steps"] = format_steps(end)
        row["seeds"] = str(len(final))
        row["success"] = format_number(mean_of(final))
        if len(final) > 1:
            low, high = interval(final)
            row["interval or range"] = f"{low:.2f} to {high:.2f}"
        if env_id == REACHER:
            row["reaching tasks"] = format_number(mean_of(group.final(success, REACHING)))
            row["stages"] = format_number(mean_of(group.final(STAGES)))
        if env_id == WALKER:
            row["return"] = f"{mean_of(group.final('episodic_return')):.0f}"
            row["return over training"] = f"{mean_of(group.over_training('episodic_return')):.0f}"
        row["over training"] = format_number(mean_of(group.over_training(success)))
        row["with the mixture"] = format_number(mean_of(group.final(success, acting="mixture")))
        if "base" in groups and name != "base":
            row["p"] = format_p(p_value(final, groups["base"].final(success)))
        cells.append(row)
    return cells


def make_details() -> str:
    """The tables of benchmark/results/README.md: every method in every environment."""
    text = ""
    comparisons = 0
    for env_id in ENVIRONMENTS:
        cells = []
        for script in SCRIPTS:
            for end in find_ends(env_id, script):
                groups = get_groups(env_id, script, METHODS, end)
                cells += describe(env_id, script, end, groups)
        if cells:
            comparisons += sum(bool(row.get("p")) for row in cells)
            text += f"### {env_id}\n\n{to_markdown(cells)}\n"
    text += f"There are {comparisons} p-values on this page. None is corrected for their number.\n"
    return text


def make_overview() -> str:
    """The table of README.md: with and without QMP, beside the paper at equal steps."""
    cells = []
    for env_id, script in itertools.product(ENVIRONMENTS, SCRIPTS):
        success = success_of(env_id)
        for end in find_ends(env_id, script):
            groups = get_groups(env_id, script, ("base", "qmp"), end)
            if len(groups) < 2:
                continue
            base = groups["base"].final(success)
            qmp = groups["qmp"].final(success)
            row = {"environment": env_id, "base method": SCRIPTS[script]}
            row["steps"] = format_steps(end)
            row["seeds"] = str(min(len(base), len(qmp)))
            row["without QMP"] = format_number(base.mean())
            row["with QMP"] = format_number(qmp.mean())
            row["p"] = format_p(p_value(qmp, base))
            row["paper, without"] = format_number(paper_at(env_id, script, "base", end))
            row["paper, with"] = format_number(paper_at(env_id, script, "qmp", end))
            cells.append(row)
    return to_markdown(cells)


def make_seeds() -> pd.DataFrame:
    """A row for every seed of every method."""
    rows = []
    for env_id, script, name in itertools.product(ENVIRONMENTS, SCRIPTS, METHODS):
        group = get_group(env_id, script, name)
        for seed in group.seeds if group else []:
            alone = Group(group.title, {seed: group.seeds[seed]})
            row = {"env_id": env_id, "script": script, "method": name, "seed": seed}
            row["steps"] = alone.end()
            row["success"] = mean_of(alone.final(success_of(env_id)))
            row["over_training"] = mean_of(alone.over_training(success_of(env_id)))
            row["return"] = mean_of(alone.final("episodic_return"))
            if env_id == REACHER:
                row["reaching_tasks"] = mean_of(alone.final("first_stage", REACHING))
                row["sparse_task"] = mean_of(alone.final("first_stage", [SPARSE]))
                row["stages"] = mean_of(alone.final(STAGES))
            rows.append(row)
    return pd.DataFrame(rows)


def insert(path, text: str) -> None:
    """Put text between the marks <!-- results --> and <!-- end of results --> of a file."""
    marks = r"(<!-- results -->\n).*(<!-- end of results -->)"
    old = path.read_text()
    new = re.sub(marks, lambda found: f"{found[1]}\n{text}\n{found[2]}", old, flags=re.S)
    path.write_text(new)


def write_figures() -> None:
    """Write every figure whose runs are in benchmark/results/."""
    for name, draw in FIGURES.items():
        figure = draw()
        if figure is not None:
            save(figure, RESULTS / f"{name}.png")


def write_tables() -> None:
    """Write the tables of README.md and of benchmark/results/, and the seeds behind them."""
    make_seeds().to_csv(RESULTS / "seeds.csv", index=False, float_format="%.4g")
    insert(ROOT / "README.md", make_overview())
    insert(RESULTS / "README.md", make_details())
