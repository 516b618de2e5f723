"""Plots of runs, finished or under way: success, return and an environment's own metrics, and who acted for whom.

    python benchmark/plot.py                         # the newest run below runs/: every task, and their mean
    python benchmark/plot.py runs/a runs/b runs/c    # several: runs that differ by their seed alone become one line
    python benchmark/plot.py runs                    # all
    python benchmark/plot.py --results               # results of this repository: files, tables, figures

Writes plots-ENVIRONMENT.png and plots-ENVIRONMENT-who-acted.png into the run's folder, or where several runs have their
folders. Lines are means over the seeds that have reached a step, with a 95% interval (percentile bootstrap over seeds);
of runs with the same settings and seed the one that has got further counts. With --results the runs, by default those
below runs/benchmark/, go into benchmark/results/ENVIRONMENT.csv and runs.csv, and figures and tables are made of these.
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
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # there may be no screen
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import seaborn as sns  # noqa: E402
import tyro  # noqa: E402
from matplotlib.colors import PowerNorm  # noqa: E402
from matplotlib.ticker import EngFormatter  # noqa: E402
from run import METHODS, ROOT, Script, log_of  # noqa: E402
from scipy.stats import bootstrap, mannwhitneyu, trim_mean  # noqa: E402
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

RESULTS = ROOT / "benchmark" / "results"
OWN = "own policy's share of acting"
MEAN = "mean over tasks"
FEW_TASKS = 6  # so many have a colour each, and numbers in heat maps; if there are more, all are grey
GREY = "0.7"
CSV = {"dtype": {"task": str, "acting": str, "git_commit": str}, "keep_default_na": False, "na_values": [""]}
SUCCESS = {"MultistageReacher-v0": "first_stage"}  # what the paper calls success, if not success_rate
STAGES = "stages_completed"  # of an environment that has stages
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
    """Which runs, and where their pictures go."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders of runs, or folders that have such below them"""
    output: Path | None = None
    """folder of the pictures"""
    results: bool = False
    """rewrite this repository's results: benchmark/results/, docs/results.md, the README's table and figure"""


def read_run(folder: Path) -> tuple[dict, pd.DataFrame]:
    """A run's args.json, and the rows of its evaluations.csv: of every evaluation that is completely written."""
    record = json.loads((folder / "args.json").read_text())
    text = (folder / "evaluations.csv").read_text()
    text = text[: text.rfind("\n") + 1] or "global_step,acting,task\n"
    rows = pd.read_csv(io.StringIO(text), float_precision="round_trip", **CSV)
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


def label(setting: dict, others: Sequence[dict]) -> str:
    """The flags of a setting in which those of all lines, `others`, differ; the script, if in none."""
    flags = []
    for name, value in setting.items():
        if len({str(other[name]) for other in others if name in other}) > 1:
            flag = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            flags += [text] if name == "script" else [flag] if isinstance(value, bool) else [flag, text]
    return " ".join(flags) or setting["script"]


def own_share(rows: pd.DataFrame) -> np.ndarray:
    """The share of a task's steps in which its own policy acted, for every row."""
    acted = rows.filter(regex="^acted/")
    return acted.to_numpy()[np.arange(len(rows)), acted.columns.get_indexer("acted/" + rows["task"])]


def read_lines(folders: Sequence[Path]) -> dict[tuple[str, ...], pd.DataFrame]:
    """For every environment (its name, its tasks) the rows of runs, with their `seed` and the name of their `line`."""
    runs, environments, found = [(*read_run(folder), folder) for folder in folders], {}, {}
    for record, rows, folder in sorted(runs, key=lambda run: -run[1]["global_step"].max() if len(run[1]) else 0):
        seed, setting = record["args"]["seed"], settings(record)
        kept = environments.setdefault((record["args"]["env_id"], *record["tasks"]), [])
        longer = [path for other_seed, other, _, path in kept if (other_seed, other) == (seed, setting)]
        if rows.empty:
            print(f"{folder} has no evaluation yet", file=sys.stderr)
        elif longer:
            print(f"{folder} is left out: {longer[0]} has the same settings and seed", file=sys.stderr)
        else:
            kept.append((seed, setting, rows, folder))
    for environment, kept in environments.items():
        labels = [(label(setting, [other for _, other, _, _ in kept]), setting) for _, setting, _, _ in kept]
        parts = []
        for (seed, setting, rows, folder), (line, _) in zip(kept, labels, strict=True):
            unique = all(other == setting for name, other in labels if name == line)  # not if a flag is new
            parts.append(rows.assign(seed=seed, line=line if unique else f"{line}, {folder.name}"))
        if parts:
            rows = pd.concat(parts).sort_values("line", kind="stable")
            counts = {line: seeds_of(part) for line, part in rows.groupby("line")}
            rows["line"], rows[OWN] = [f"{line} ({counts[line]})" for line in rows["line"]], own_share(rows)
            found[environment] = rows
    return found


def seeds_of(rows: pd.DataFrame) -> str:
    """How many seeds a line has, and the step from which on there are fewer."""
    ends = rows.groupby("seed")["global_step"].max()
    fewer = f", fewer after step {ends.min():,}" if ends.nunique() > 1 else ""
    return f"{len(ends)} seeds{fewer}" if len(ends) > 1 else f"seed {ends.index[0]}"


def long_form(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Means over tasks of some columns, one in a row, at all steps between a seed's first and last evaluation."""
    keys = ["panel", "line", "acting", "seed"]
    rows = rows[[*keys[1:], "global_step", *columns]].melt([*keys[1:], "global_step"], columns, "panel", MEAN)
    wide = rows.dropna(subset=MEAN).pivot_table(MEAN, "global_step", keys, sort=False).sort_index()
    wide = wide.interpolate("index", limit_area="inside")  # seeds may have been evaluated at different steps
    return wide.melt(ignore_index=False, value_name=MEAN).dropna().reset_index()


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean over runs: values [R]."""
    return bootstrap((values,), np.mean, method="percentile", n_resamples=2000, rng=0).confidence_interval


def draw_lines(title: str, rows: pd.DataFrame, colors: dict[str, str]) -> sns.FacetGrid:
    """A figure of rows in long form: lines in their colours, dashed where mixtures acted."""
    panels = rows["panel"].nunique()
    grid = sns.relplot(
        rows, x="global_step", y=MEAN, hue="line", hue_order=[*colors], palette=colors, size="line",
        sizes={line: 2.5 if line == MEAN else 1 for line in colors},
        legend=False if GREY in colors.values() else "auto",
        style="acting" if "mixture" in set(rows["acting"]) else None, style_order=["own", "mixture"],
        col="panel", col_wrap={4: 2}.get(panels, min(3, panels)), height=3.2, aspect=1.4, kind="line",
        errorbar=interval, facet_kws={"sharex": False, "sharey": False},
    )  # fmt: skip
    for panel, axes in grid.axes_dict.items():
        axes.set(title=panel, xlabel="environment steps, summed over tasks", ylabel="")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.rpartition(": ")[2] in ("success_rate", OWN, *SUCCESS.values()):
            axes.set_ylim(-0.05, 1.05)
        for line in axes.lines:
            line.set_marker("o" if len(line.get_xdata()) == 1 else "")
    if grid.legend:
        grid.legend.set_title("")
    grid.tight_layout()
    grid.figure.suptitle(title, y=1.01, va="bottom")
    return grid


def draw_mixtures(title: str, rows: pd.DataFrame) -> plt.Figure | None:
    """Heat maps of who acted in training, for every line; of one line alone, for each third of its steps.

    Task i's row has the shares of steps in which the policies acted. No figure if they all were its own.
    """
    if rows.empty:
        return None
    tasks, found, alone = list(rows["task"].unique()), {}, rows["line"].nunique() == 1
    rows = rows[rows["acting"] == "own"].dropna(subset=[f"acted/{tasks[0]}"])
    third = pd.cut(rows["global_step"], 3, labels=False) if alone else pd.Series(0, rows.index)
    for (line, _), part in rows.groupby(["line", third], sort=False):
        first, last = part["global_step"].min(), part["global_step"].max()
        mixture = part.groupby("task", sort=False)[[f"acted/{policy}" for policy in tasks]].mean()
        if not np.allclose(mixture, np.eye(len(tasks))):
            found[f"evaluations at {first:,} to {last:,}" if alone else line] = mixture.set_axis(tasks, axis=1)
    if not found:
        return None
    height, columns = min(9, 3.4 + 0.12 * len(tasks)), min(len(found), 3)
    size = (height + 1) * columns, height * -(-len(found) // columns)
    figure, grid = plt.subplots(-(-len(found) // columns), columns, figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(f"{title}: who acted, share of steps")
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, mixture) in zip(grid.flat, found.items(), strict=False):
        annotation = {"annot": len(tasks) <= FEW_TASKS, "fmt": ".2f", "annot_kws": {"fontsize": 8}}
        colors = {"norm": PowerNorm(0.5, 0, 1), "cmap": "Blues"}  # small shares show too
        sns.heatmap(mixture, ax=axes, xticklabels=True, yticklabels=True, **colors, **annotation)
        axes.set_axis_on()
        axes.set(xlabel="acting policy", ylabel="task", title=textwrap.fill(name, int(height * 8)))
        axes.tick_params(labelsize=min(9, 330 / len(tasks)))
    return figure


def plot_runs(folders: Sequence[Path], output: Path) -> None:
    """Pictures for every environment among the runs."""
    output.mkdir(parents=True, exist_ok=True)
    names = Counter()
    for (env_id, *tasks), rows in read_lines(folders).items():
        name = f"plots-{env_id.replace(':', '-')}"
        names[name] += 1
        other_tasks = f"-{names[name]}" if names[name] > 1 else ""  # of the same environment, which has changed
        title, path = env_id, output / f"{name}{other_tasks}.png"
        skipped = {"global_step", "acting", "task", "episodic_length", "seed", "line", *rows.filter(regex="^acted/")}
        columns, lines = [name for name in rows if name not in skipped], rows["line"].unique()
        title += f", {lines[0]}" * (len(lines) == 1)
        if mixtures := draw_mixtures(title, rows):
            mixtures.savefig(path.with_stem(f"{path.stem}-who-acted"), dpi=100)
            print(f"plots in {path.with_stem(f'{path.stem}-who-acted')}")
        if len(lines) == 1:
            own, few = rows[rows["acting"] == "own"], len(tasks) <= FEW_TASKS
            keys, of_tasks = ["panel", "line", "global_step"], long_form(own.assign(line=own["task"]), columns)
            of_tasks = of_tasks.groupby(keys, sort=False, as_index=False)[MEAN].mean()  # no intervals
            rows = pd.concat([of_tasks.assign(acting="own"), long_form(own.assign(line=MEAN), columns)])
            colors = {task: f"C{k}" if few else GREY for k, task in enumerate(tasks)} | {MEAN: "black"}
            title += "" if few else "; grey: tasks, black: their mean"
        else:
            rows = long_form(rows, columns)
            palette = sns.color_palette("tab10" if len(lines) <= 10 else "husl", len(lines))
            colors = dict(zip(lines, palette, strict=True))
        draw_lines(title, rows, colors).savefig(path, dpi=100)
        plt.close("all")
        print(f"plots in {path}")


def gather(folders: Sequence[Path]) -> None:
    """Put the finished runs of benchmark/run.py into the CSV files of benchmark/results/."""
    evaluations, records = {}, []
    for folder in folders:
        (record, rows), log = read_run(folder), log_of(folder)
        if not log or not log[-1].startswith("exit code 0 "):
            continue
        _, script, method, seed = folder.name.rsplit("__", 3)
        run, env_id = {"script": script, "method": method, "seed": int(seed)}, record["args"]["env_id"]
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        logged = [tag for tag in events.Tags()["scalars"] if tag.startswith("switch/advantage/")]
        advantage = {(e.step, tag.split("/", 2)[2], "own"): e.value for tag in logged for e in events.Scalars(tag)}
        keys = zip(rows["global_step"], rows["task"], rows["acting"], strict=True)
        rows = rows.assign(advantage=[advantage.get(key) for key in keys], **run)
        evaluations.setdefault(env_id, []).append(rows[[*run, *rows.columns.difference(run, sort=False)]])
        hours = sum(float(line.split()[-2]) for line in log if line.startswith("exit code"))
        run |= {"env_id": env_id, "global_step": rows["global_step"].max(), "hours": round(hours, 2)}
        run |= {
            "git_commit": record["git_commit"],
            "cpu": record.get("cpu"),  # its vector instructions; runs before they were recorded lack it
            **record["versions"],
            "command": [line[2:] for line in log if line.startswith("$ ")][-1],
        }
        records.append(pd.DataFrame([run]))
    for env_id, new in evaluations.items():
        merge(RESULTS / f"{env_id.replace(':', '-')}.csv", new, ["script", "method", "seed"])
    if records:
        merge(RESULTS / "runs.csv", records, ["env_id", "script", "method", "seed"])


def merge(path: Path, new: list[pd.DataFrame], key: list[str]) -> None:
    """Put rows of runs into a CSV file, in place of those of the same runs, unless these had got further."""
    parts = [*([pd.read_csv(path, **CSV)] if path.exists() else []), *new]
    rows = pd.concat(dict(enumerate(parts)), names=["part"]).reset_index("part")
    ends = rows.groupby([*key, "part"], as_index=False)["global_step"].max()
    kept = ends.sort_values(["global_step", "part"]).drop_duplicates(key, keep="last")
    rows = rows.merge(kept[[*key, "part"]]).drop(columns="part")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.sort_values(key, kind="stable").to_csv(path, index=False, float_format="%.5g")


def mean_and_interval(values: np.ndarray, expected: int = 0) -> str:
    """Mean over runs of values [R], with its interval, and their number if there is one or fewer than expected."""
    if len(values) < 2:
        return f"{values.mean():.2f} (1 seed)"
    fewer = f" ({len(values)} seeds)" if len(values) < expected else ""
    return "{:.2f} [{:.2f}, {:.2f}]{}".format(values.mean(), *interval(values), fewer)


def improvement(better: np.ndarray, base: np.ndarray) -> float:
    """Probability that a run of one method beats one of another (Agarwal et al., 2021): [R, N], [R', N], ties half."""
    pairs = [mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(better.T, base.T, strict=True)]
    return float(np.mean(pairs))


def last_tenth(rows: pd.DataFrame) -> pd.DataFrame:
    """Those rows that are of the last tenth of the steps."""
    return rows[rows["global_step"] > 0.9 * rows["global_step"].max()]


def summary(rows: pd.DataFrame, column: str, paper: dict[str, float]) -> pd.DataFrame:
    """Final success of every method of a script, as cells of a table: rows of runs up to the same step."""
    scores, cells = {}, {}
    last = last_tenth(rows)
    for key, part in last.groupby(["acting", "line"]):
        scores[key] = part.pivot_table(column, "seed", "task").to_numpy()  # [R, N]
    own = rows[rows["acting"] == "own"]
    stages = last[last["acting"] == "own"].groupby(["line", "seed"])[STAGES].mean() if STAGES in last else None
    of_all_steps = own.groupby(["line", "seed"])[column].mean()
    for method in METHODS:
        if ("own", method) in scores:
            values, mixture = scores["own", method], scores.get(("mixture", method))
            base = scores.get(("own", "base")) if method != "base" else None
            cells[method] = {
                "seeds": str(len(values)),
                "success [95%]": mean_and_interval(values.mean(1)),
                "stages": "" if stages is None else mean_and_interval(stages[method].to_numpy()),
                "IQM": f"{trim_mean(values.ravel(), 0.25):.2f}" if len(values) >= 5 else "",
                "of all steps": mean_and_interval(of_all_steps[method].to_numpy()),
                "of its mixtures": "" if mixture is None else mean_and_interval(mixture.mean(1), len(values)),
                "probability to beat base": "" if base is None else f"{improvement(values, base):.2f}",
                "paper": f"{paper[method]:.2f}" if method in paper else "",
            }
    return pd.DataFrame(cells).T


def by_seed(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """What every seed of every method comes to, as cells of a table: rows of runs up to the same step."""
    keys, rows = ["line", "seed"], rows[rows["acting"] == "own"]
    last = last_tenth(rows)
    found = [last.pivot_table(name, keys, "task", sort=False) for name in (column, STAGES) if name in last]
    cells, *stages = (part.assign(mean=part.mean(axis=1)).map("{:.2f}".format) for part in found)
    for part in stages:
        cells += " / " + part
    cells["of all steps"] = rows.groupby(keys)[column].mean().map("{:.2f}".format)
    cells["own policy acts"] = last.groupby(keys)[OWN].mean().map("{:.2f}".format)
    cells["without a failure"] = ""
    for key, solved in rows.groupby([*keys, "global_step"])[column].min().eq(1).groupby(keys):
        steps = solved.droplevel(keys)
        if steps.any():
            since = steps.loc[steps.idxmax() :]
            cells.loc[key, "without a failure"] = f"{since.index[0]:,}: {since.sum()} of {len(since)}"
    cells = cells.reindex(METHODS, level="line")
    return cells.set_axis([f"{line}, {seed}" for line, seed in cells.index])


def table(cells: pd.DataFrame) -> str:
    """A table in Markdown, without columns that are empty."""
    cells = cells.loc[:, (cells != "").any()]
    lines = [["", *cells.columns], ["---"] * (len(cells.columns) + 1), *cells.reset_index().to_numpy()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def insert(path: Path, text: str) -> None:
    """Put text between the marks <!-- results --> and <!-- end of results --> of a file."""
    marks = r"(<!-- results -->\n).*(<!-- end of results -->)"
    path.write_text(re.sub(marks, lambda found: f"{found[1]}\n{text}\n{found[2]}", path.read_text(), flags=re.S))


def save(name: str, title: str, rows: pd.DataFrame, paper: dict[str, dict[str, float]]) -> None:
    """A figure of results: rows in long form, and dotted the paper's values by panel and method."""
    palette = [*sns.color_palette("tab10"), "black", "gold", "navy", "lime", "teal"]
    colors = {method: color for method, color in zip(METHODS, palette, strict=True) if method in set(rows["line"])}
    grid = draw_lines(title, rows, colors)
    for panel, axes in grid.axes_dict.items():
        for method, value in paper.get(panel, {}).items():
            axes.axhline(value, color=colors.get(method), linestyle=":")
    grid.savefig(RESULTS / f"{name}.png", dpi=100)
    plt.close("all")


def write_results() -> None:
    """Figures and tables from the CSV files of benchmark/results/."""
    records = pd.read_csv(RESULTS / "runs.csv", **CSV)
    text, overview, curves, paper = "", {}, [], {}
    for env_id, of_env in records.groupby("env_id"):
        name, success, parts = env_id.replace(":", "-"), SUCCESS.get(env_id, "success_rate"), []
        rows = pd.read_csv(RESULTS / f"{name}.csv", **CSV).rename(columns={"method": "line"})
        rows[OWN] = own_share(rows)
        text += f"## {env_id}\n"
        row = ""
        for script in filter(set(rows["script"]).__contains__, Script.__args__):
            found, panel = rows[rows["script"] == script], f"{script}: {success}"
            end = found.groupby(["line", "seed"])["global_step"].max().min()
            found = found[found["global_step"] <= end]
            values = dict(zip(("base", "qmp"), PAPER.get(env_id, {}).get(script, ()), strict=False))
            paper |= {panel: values, f"{env_id}, {panel}": values}
            cells = summary(found, success, values)
            last_seeds = of_env[of_env["script"] == script].drop_duplicates("method", keep="last")
            commands = last_seeds["command"].str.cat(sep="\n")
            text += f"\n### {script}.py, {end:,} steps\n\n```\n{commands}\n```\n\n{table(cells)}"
            text += f"\n<details><summary>Every seed</summary>\n\n{table(by_seed(found, success))}\n</details>\n"
            pair = " → ".join(cells["success [95%]"].get(method, "not run") for method in ("base", "qmp"))
            row = row or f"{env_id}, {end:,} steps"  # those of the environment's first script
            pair += "" if f" {end:,} " in row else f" ({end:,} steps)"
            pair += "; paper, at its end: {base:.2f} → {qmp:.2f}".format(**values) if values else ""
            overview[row, f"`{script}.py`"] = pair
            curve = long_form(found, [success, *[STAGES] * (STAGES in found), OWN, "advantage"])
            curve = curve[curve["line"].str.startswith("qmp") | curve["panel"].isin([success, STAGES])]
            incomparable = curve["line"].str.contains("uniform|period|eq2|own") & (curve["panel"] == "advantage")
            too_many = curve["line"].str.contains("uniform") & (curve["acting"] == "mixture")
            curve = curve[~incomparable & ~too_many]
            parts.append(curve.assign(panel=f"{script}: " + curve["panel"]))
            main = parts[-1][curve["line"].isin(["base", "qmp"]) & (curve["panel"] == success)]
            curves.append(main.assign(panel=f"{env_id}, {panel}"))
            if figure := draw_mixtures(f"{env_id}, {script}, qmp", found[found["line"] == "qmp"]):
                figure.savefig(RESULTS / f"{name}-{script}.png", dpi=100)
                text += f"\n![Who acted](../benchmark/results/{name}-{script}.png)\n"
        save(name, env_id, pd.concat(parts), paper)
        text += f"\n![{env_id}](../benchmark/results/{name}.png)\n\n"
    save("success", "Success of base methods, and with QMP", pd.concat(curves), paper)
    insert(ROOT / "docs" / "results.md", text.rstrip() + "\n")
    picture = "![Success of base methods, and with QMP](benchmark/results/success.png)"
    columns = [f"`{script}.py`" for script in Script.__args__]
    overview = pd.Series(overview).unstack().reindex(columns=columns).fillna("")
    insert(ROOT / "README.md", f"{table(overview)}\n{picture}\n")


def main(args: Args) -> int:
    """Plot. Returns the exit code."""
    roots = args.runs or (ROOT / "runs" / "benchmark" if args.results else Path("runs"),)
    folders = find_runs(roots)
    if not folders and not (args.results and (RESULTS / "runs.csv").exists()):
        print(f"plot.py: error: no run in {', '.join(map(str, roots))}; qmp_sac.py makes one", file=sys.stderr)
        return 2
    if args.results:
        gather(folders)
        write_results()
        return 0
    if not args.runs:
        roots = folders = [max(folders, key=lambda folder: (folder / "evaluations.csv").stat().st_mtime)]
    plot_runs(folders, args.output or Path(os.path.commonpath([root.resolve() for root in roots])))
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
