"""Plot a run from its folder: success of each task, who acted, and the mixture at the end.

python benchmark/plot.py                # the newest run in runs/
python benchmark/plot.py runs/my_run    # writes runs/my_run/plots.png
"""

import csv
import sys
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FEW = 12  # tasks that a legend and numbers have room for


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def read_mixture(run_dir: Path, tasks: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Steps [T] and the share of each policy in each task's acting [T, N, P] of a run."""
    rows = read(run_dir / "mixture.csv")
    steps = np.unique([int(row["global_step"]) for row in rows])
    shares = np.array([float(row["probability"]) for row in rows])
    return steps, shares.reshape(len(steps), len(tasks), len(tasks))


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
    mixture_steps, mixture = read_mixture(run_dir, tasks)

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
    path = run_dir / "plots.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path


def main(argv: list[str]) -> None:
    """Plot the run that is named, or else the newest."""
    newest = sorted(Path("runs").glob("**/mixture.csv"), key=lambda path: path.stat().st_mtime)
    runs = [Path(word) for word in argv] or [path.parent for path in newest]
    if not runs or not (runs[-1] / "mixture.csv").exists() or not read(runs[-1] / "mixture.csv"):
        print(f"plot.py: error: no run with a mixture in {runs[-1] if runs else 'runs/'}", file=sys.stderr)
        raise SystemExit(2)
    print(f"plots in {plot_run(runs[-1])}")


if __name__ == "__main__":
    main(sys.argv[1:])
