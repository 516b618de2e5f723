"""Does QMP solve PointReach, and does its base method not? Ten seeds of each, unless told otherwise.

QMP is run twice: as by default, keeping the chosen policy for some steps, and choosing anew in every step.

    python benchmark/pointreach.py --jobs 2     # results to benchmark/results/pointreach.csv

A run counts as solved for a task if the task's success is 1 in the last evaluation.
"""

import csv
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tyro

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Args:
    """Arguments."""

    script: str = "qmp_sac.py"
    """which script to run"""
    seeds: int = 10
    """seeds 1 to this"""
    jobs: int = 1
    """runs at a time; each uses one core"""
    runs: Path = ROOT / "runs" / "pointreach"
    """where the run folders go; finished ones are not run again, so delete them after a change of the code"""
    output: Path = ROOT / "benchmark" / "results" / "pointreach.csv"
    """the results: script, method, seed, global_step, task, success_rate, episodic_return"""


METHODS = {"QMP": ["--qmp"], "QMP, choosing every step": ["--qmp", "--switch-period", "1"], "no QMP": ["--no-qmp"]}


def run(script: str, runs: Path, method: str, seed: int) -> list[dict]:
    """Train once, unless it was done before. Returns the rows of evaluations.csv, with script, method and seed."""
    run_dir = runs.resolve() / f"{Path(script).stem}__{method}__{seed}"
    if not (run_dir / "done").exists():
        shutil.rmtree(run_dir, ignore_errors=True)  # what an interrupted run left
        command = [sys.executable, script, "--seed", str(seed), "--run-dir", str(run_dir)]
        subprocess.run([*command, *METHODS[method]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (run_dir / "done").touch()
    with open(run_dir / "evaluations.csv", newline="") as file:
        return [{"script": script, "method": method, "seed": seed} | row for row in csv.DictReader(file)]


def main(args: Args) -> None:
    """Run everything, write the table, print how many seeds solved each task."""
    jobs = [(method, seed) for seed in range(1, args.seeds + 1) for method in METHODS]
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for (method, seed), result in zip(
            jobs, pool.map(lambda job: run(args.script, args.runs, *job), jobs), strict=True
        ):
            last = {row["task"]: float(row["success_rate"]) for row in result}
            print(f"seed {seed}, {method}: {last}", flush=True)
            rows += result
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with open(args.output, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    end = max(int(row["global_step"]) for row in rows)
    for method in METHODS:
        final = [row for row in rows if row["method"] == method and int(row["global_step"]) == end]
        for task in dict.fromkeys(row["task"] for row in final):
            solved = sum(float(row["success_rate"]) == 1 for row in final if row["task"] == task)
            print(f"{method:26}{task:22}{solved} of {args.seeds} seeds")


if __name__ == "__main__":
    main(tyro.cli(Args))
