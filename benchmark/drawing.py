"""Groups of runs that differ by their seed, their statistics, and the parts that figures share."""

import math
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # there may be no screen
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter
from run import SOLID
from scipy.stats import DegenerateDataWarning, bootstrap, permutation_test

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "0.92",
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "savefig.dpi": 160,
    }
)
WIDTH = 8.3  # inches, of a figure that GitHub shows in 830 pixels
MANY_SEEDS = 5  # from so many on there are an interval, a band and a p-value
STEPS_LABEL = "environment steps (all tasks)"
# What the paper calls success, where that is not success_rate.
SUCCESS = {"MultistageReacher-v0": "first_stage"}
# The names of these tasks and metrics are text, even if one of them is "1" or "NA".
CSV = {
    "dtype": {"task": str, "acting": str, "git_commit": str},
    "keep_default_na": False,
    "na_values": [""],
}


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone: how they are drawn, and the evaluations of each."""

    title: str
    seeds: dict[int, pd.DataFrame]
    color: str = "black"
    linestyle: str | tuple = SOLID

    def end(self) -> int:
        """The step that all seeds have reached."""
        return min(rows["global_step"].max() for rows in self.seeds.values())

    def until(self, end: int) -> "Group":
        """The seeds that have reached a step, until then."""
        seeds = {}
        for seed, rows in self.seeds.items():
            if rows["global_step"].max() >= end:
                seeds[seed] = rows[rows["global_step"] <= end]
        return replace(self, seeds=seeds)

    def having(self, column: str) -> "Group":
        """The seeds that have values in a column."""
        seeds = {}
        for seed, rows in self.seeds.items():
            if column in rows and rows[column].notna().any():
                seeds[seed] = rows
        return replace(self, seeds=seeds)

    def curve(self, column: str, tasks=None, acting: str = "own") -> pd.DataFrame:
        """Means over tasks [steps, seeds], at the steps that all seeds have passed."""
        curves = {}
        for seed, rows in self.seeds.items():
            if column not in rows:
                return pd.DataFrame()
            rows = rows[rows["acting"] == acting]
            if tasks is not None:
                rows = rows[rows["task"].isin(tasks)]
            curves[seed] = rows.groupby("global_step")[column].mean().dropna()
        # Seeds may have been evaluated at different steps.
        curve = pd.DataFrame(curves).sort_index()
        return curve.interpolate("index", limit_area="inside").dropna()

    def final(self, column: str, tasks=None, acting: str = "own") -> np.ndarray:
        """Each seed's mean over the last 10% of training, [seeds]; empty if unknown."""
        curve = self.curve(column, tasks, acting)
        return curve[curve.index > 0.9 * curve.index.max()].mean().to_numpy()

    def over_training(self, column: str, tasks=None) -> np.ndarray:
        """Each seed's mean over all evaluations, [seeds]; empty if unknown."""
        return self.curve(column, tasks).mean().to_numpy()

    def shares(self, tasks, low: float = 0, high: float = math.inf) -> np.ndarray:
        """Shares of the steps from low to high in which each policy acted, [tasks, policies]."""
        rows = pd.concat(self.seeds.values())
        rows = rows[(rows["acting"] == "own") & (rows["global_step"] > low)]
        rows = rows[rows["global_step"] <= high]
        columns = [f"acted/{task}" for task in tasks]
        return rows.groupby("task")[columns].mean().reindex(tasks).to_numpy()


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean over seeds, values [seeds, ...]: a 95% bootstrap interval; of few the range."""
    if len(values) < MANY_SEEDS:
        return values.min(0), values.max(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # all seeds are equal
        resampled = bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=0)
    return resampled.confidence_interval


def p_value(x: np.ndarray, y: np.ndarray) -> float:
    """Exact two-sided permutation test of equal means; NaN where there are few seeds."""
    if min(len(x), len(y)) < MANY_SEEDS:
        return math.nan

    def difference(x, y, axis):
        return x.mean(axis=axis) - y.mean(axis=axis)

    return permutation_test((x, y), difference, vectorized=True, n_resamples=10**6).pvalue


def count_seeds(groups: list[Group]) -> str:
    """How many seeds the groups have, in words."""
    counts = sorted({len(group.seeds) for group in groups})
    if counts == [1]:
        return "1 seed"
    return f"{' to '.join(map(str, counts[:: max(1, len(counts) - 1)]))} seeds"


def new_figure(columns: int, rows: int = 1, height: float = 2.6, width: float = WIDTH, **options):
    """A figure and its axes [rows, columns]."""
    size = (width, rows * height)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)


def draw_curve(axes, group: Group, column: str, tasks=None) -> None:
    """The mean over seeds, in a band if there are many, among the seeds' dots if there are few."""
    curve = group.curve(column, tasks)
    if curve.empty:
        return
    style = {"color": group.color, "linestyle": group.linestyle, "linewidth": 1.8}
    axes.plot(curve.index, curve.mean(axis=1), label=group.title, **style)
    if len(group.seeds) >= MANY_SEEDS:
        low, high = interval(curve.to_numpy().T)
        axes.fill_between(curve.index, low, high, color=group.color, alpha=0.15, linewidth=0)
    elif len(group.seeds) > 1:
        every = math.ceil(len(curve) / 15)  # more dots would hide the line
        dots = curve.iloc[::-every]
        axes.plot(dots.index, dots, "o", color=group.color, markersize=2.2, alpha=0.7)


def finish_curves(axes, title: str, ylabel: str = "", is_share: bool = True) -> None:
    """Title, labels and limits of a panel with curves."""
    axes.set_title(title)
    axes.set(xlabel=STEPS_LABEL, ylabel=ylabel)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if is_share:
        axes.set(ylim=(-0.03, 1.05), yticks=np.linspace(0, 1, 6))


def draw_strips(axes, groups: list[Group], values: list[np.ndarray], title: str) -> None:
    """A row for each group: a bar and a number for the mean, a dot for every seed."""
    for y, (group, of_seeds) in enumerate(zip(groups, values, strict=True)):
        if not len(of_seeds):
            continue
        bar = {"color": group.color, "alpha": 0.22, "linewidth": 0}
        axes.barh(y, of_seeds.mean(), height=0.66, **bar)
        # Seeds that are equal, or nearly, lie above one another.
        dots = {"color": group.color, "markersize": 3.8, "mec": "white", "mew": 0.4}
        rounded = of_seeds.round(2)
        for value in np.unique(rounded):
            equal = of_seeds[rounded == value]
            spread = min(0.3, 0.065 * (len(equal) - 1))
            heights = y + np.linspace(-spread, spread, len(equal))
            axes.plot(equal, heights, "o", **dots)
        number = {"va": "center", "fontsize": 8, "color": "0.25", "clip_on": False}
        position = axes.get_yaxis_transform()
        axes.text(1.04, y, f"{of_seeds.mean():.2f}", transform=position, **number)
    axes.set_title(title)
    axes.set(yticks=range(len(groups)), yticklabels=[group.title for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def draw_table(axes, values: np.ndarray, rows, columns, top: float | None = None):
    """A heat map of values [rows, columns], from 0 to `top`, with numbers where there is room."""
    low = 0 if top else None
    image = axes.imshow(values, cmap="Blues", vmin=low, vmax=top, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=8)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if top is None else top / 2
    if len(columns) <= 12:
        for (i, j), value in np.ndenumerate(values):
            color = "white" if value > middle else "0.2"
            text = f"{value:.2f}" if top else f"{value:.4g}"
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=color)
    return image


def save(figure, path: Path) -> None:
    """Write a picture, and say so."""
    verb = "replaced" if path.exists() else "wrote"
    figure.savefig(path)
    plt.close(figure)
    print(f"{verb} {path}")
