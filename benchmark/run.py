"""Run a matrix of script x method x environment x seed, as many runs at a time as there are cores.

    python benchmark/run.py --suite smoke                                    # four short runs and a figure
    python benchmark/run.py                                                  # PointReach, four scripts, five seeds
    python benchmark/run.py --env-ids MultistageReacher-v0 --scripts qmp_sac --seeds 1 2 3
    python benchmark/run.py --env-ids Maze-v0 --budget paper --dry-run       # print the commands
    python benchmark/run.py --address auto                                   # on a Ray cluster that shares its files

Every run is a command of its own and leaves its folder below runs/benchmark/; `benchmark/plot.py --results` makes CSV
files, figures and tables of them. Start it again after whatever happened: finished runs are skipped, unfinished ones
go on from their checkpoints. Ctrl-C checkpoints every run. A run that fails is tried again from its checkpoint, three
times in all; the exit code is 1 if one kept failing. Needs requirements-benchmark.txt.
"""

import csv
import fcntl
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn, TextIO

import tyro
from tqdm import tqdm

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ATTEMPTS = 3


@dataclass(frozen=True)
class Setting:
    """How an environment is trained: the authors' hyper-parameters, in the flags of our scripts."""

    paper: str
    """of the paper's budget: total steps and what depends on them, on some also the batch"""
    laptop: str = ""
    """in place of these on a laptop; empty where there is nothing to reduce"""
    flags: str = ""
    """of both budgets"""
    mtsac: str = ""
    """of qmp_mtsac.py in addition"""


SETTINGS = {
    "PointReach-v0": Setting("--total-timesteps 40_000 --learning-starts 2_000"),
    # As many steps of each task, whatever their number.
    "PointReach2-v0": Setting("--total-timesteps 20_000 --learning-starts 1_000"),
    "PointReach8-v0": Setting("--total-timesteps 80_000 --learning-starts 4_000"),
    "MultistageReacher-v0": Setting(
        paper="--total-timesteps 2e6 --learning-starts 50_000 --eval-frequency 20_000",
        laptop="--total-timesteps 600_000 --learning-starts 10_000 --eval-frequency 20_000",
        flags="--batch-size 32",
        mtsac="--policy-lr 1e-3 --q-lr 1e-3 --hidden-sizes 512 512",
    ),
    "Maze-v0": Setting(
        paper="--total-timesteps 12e6 --learning-starts 30_000 --eval-frequency 200_000 --batch-size 256",
        laptop="--total-timesteps 6e6 --learning-starts 30_000 --eval-frequency 100_000 --batch-size 64 "
        "--checkpoint-frequency 200_000",
        flags="--train-frequency 6",
    ),
    "MetaWorldCDS-v0": Setting(
        paper="--total-timesteps 10e6 --learning-starts 20_000 --eval-frequency 200_000",
        laptop="--total-timesteps 1e6 --learning-starts 20_000 --eval-frequency 50_000",
        flags="--batch-size 256 --train-frequency 10 --policy-lr 1.5e-3 --q-lr 1.5e-3",
    ),
    "MetaWorldMT10-v3": Setting(
        paper="--total-timesteps 40e6 --learning-starts 50_000 --eval-frequency 1_000_000 --batch-size 2560",
        laptop="--total-timesteps 1e6 --learning-starts 50_000 --batch-size 256 --eval-frequency 50_000",
        flags="--train-frequency 10 --policy-lr 1.5e-3 --q-lr 1.5e-3 --own-policy-prob 0.7",
    ),
    "MetaWorldMT50-v3": Setting(
        paper="--total-timesteps 30e6 --learning-starts 75_000 --eval-frequency 1_000_000",
        laptop="--total-timesteps 1e6 --learning-starts 75_000",
        flags="--batch-size 26 --train-frequency 10 --hidden-sizes 400 400",
    ),
    "Walker2dMT4-v0": Setting(
        paper="--total-timesteps 8e6 --learning-starts 40_000 --eval-frequency 200_000",
        laptop="--total-timesteps 800_000 --learning-starts 40_000 --eval-frequency 40_000",
        flags="--batch-size 32 --train-frequency 2 --gradient-steps 3",
    ),
    "KitchenMT10-v0": Setting(
        paper="--total-timesteps 5e6 --learning-starts 20_000 --eval-frequency 100_000 --batch-size 1280",
        laptop="--total-timesteps 1e6 --learning-starts 20_000 --batch-size 256 --eval-frequency 50_000",
        flags="--train-frequency 4",
    ),
}
METHODS = {
    "base": "--no-qmp",
    "qmp": "",
    "qmp-period-1": "--switch-period 1",
    "qmp-period-3": "--switch-period 3",
    "qmp-period-30": "--switch-period 30",
    "qmp-mean": "--switch-samples 0",
    "qmp-mean-period-1": "--switch-samples 0 --switch-period 1",
    "qmp-8-samples": "--switch-samples 8",
    "qmp-no-entropy": "--no-switch-entropy",
    "qmp-softmax": "--switch-rule softmax",
    "qmp-uniform": "--switch-rule uniform",
}
Script = Literal["qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds"]


@dataclass
class Args:
    """Arguments."""

    suite: Literal["smoke"] | None = None
    """smoke: PointReach, qmp_sac alone and with QMP, two seeds, figures; some minutes on two cores"""
    env_ids: list[Literal[tuple(SETTINGS)]] = field(default_factory=lambda: ["PointReach-v0"])
    """environments"""
    scripts: list[Script] = field(default_factory=lambda: list(Script.__args__))
    """base methods"""
    methods: list[Literal[tuple(METHODS)]] = field(default_factory=lambda: ["base", "qmp"])
    """the base method alone, QMP as it is by default, and variants of the switch"""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    """seeds"""
    budget: Literal["laptop", "paper"] = "laptop"
    """length of the training"""
    runs: Path = ROOT / "runs" / "benchmark"
    """where the run folders go; delete those of another version of the code"""
    address: str = "local"
    """Ray's address: a Ray of its own on this machine, or auto, or that of a cluster's head"""
    jobs: int | None = None
    """runs at a time, with a Ray of its own; default one for each core"""
    dry_run: bool = False
    """print the commands only"""


@dataclass(frozen=True)
class Run:
    """One run of the matrix."""

    folder: Path
    """of the run"""
    command: list[str]
    """that starts it, as a user would type it"""
    total: int
    """steps"""

    @property
    def log(self) -> Path:
        """Its command and its output, beside the folder."""
        return Path(f"{self.folder}.log")

    def finished(self) -> bool:
        """Whether it needs no more."""
        return (self.folder / "finished").exists()

    def checkpointed(self) -> bool:
        """Whether there is something to go on from."""
        return (self.folder / "checkpoint.pt").exists()

    def begun_as(self) -> str:
        """The command that began what there is of it; its own if there is nothing, or nothing is known."""
        if not (self.log.exists() and (self.finished() or self.checkpointed())):
            return " ".join(self.command)
        return self.log.read_text().partition("\n")[0].removeprefix("$ ")


def command(env_id: str, script: str, method: str, seed: int, budget: str) -> list[str]:
    """The words of a run's command, as a user would type it."""
    setting = SETTINGS[env_id]
    steps = setting.paper if budget == "paper" else setting.laptop or setting.paper
    extra = setting.mtsac if script == "qmp_mtsac" else ""
    flags = f"{steps} {setting.flags} {extra} {METHODS[method]}"
    return f"python {script}.py --env-id {env_id} --seed {seed} {flags}".split()


def matrix(args: Args) -> list[Run]:
    """All runs, each once, seed by seed, so that early results compare everything."""
    runs = []
    for seed, env_id, script, method in itertools.product(
        *(dict.fromkeys(values) for values in (args.seeds, args.env_ids, args.scripts, args.methods))
    ):
        folder = args.runs.resolve() / args.budget / f"{env_id}__{script}__{method}__{seed}"
        words = command(env_id, script, method, seed, args.budget)
        runs.append(Run(folder, words, int(float(words[words.index("--total-timesteps") + 1]))))
    return runs


def last_step(run: Run) -> int:
    """The step of its last evaluation, 0 before the first."""
    try:
        lines = (run.folder / "evaluations.csv").read_text().splitlines()
        return int(lines[-1].split(",")[0])
    except (OSError, ValueError, IndexError):
        return 0


def execute(run: Run, stop: Path) -> str | None:
    """Train until the run is finished, from its checkpoint if there is one. Returns what went wrong, None if nothing.

    When `stop` exists it ends the training, which writes a checkpoint. A lock beside the folder, which the training
    inherits, keeps a second one from starting in it.
    """
    folder, error = run.folder, None
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        with open(f"{folder}.lock", "w") as lock:
            while not (locked := try_lock(lock)) and not stop.exists():
                time.sleep(1)
            if not locked or stop.exists():
                return "stopped"
            words = [sys.executable, *run.command[1:], "--run-dir", str(folder), "--num-threads", "1"]
            if run.checkpointed():
                words = [sys.executable, run.command[1], "--run-dir", str(folder), "--resume"]
            else:
                shutil.rmtree(folder, ignore_errors=True)  # it was killed before its first checkpoint
            start = time.time()
            with open(run.log, "a" if run.checkpointed() else "w") as log:
                print("$", *run.command, file=log, flush=True)
                output = {"stdout": log, "stderr": log, "pass_fds": [lock.fileno()]}
                process = subprocess.Popen(words, cwd=ROOT, start_new_session=True, **output)
            while (code := process.poll()) is None and not stop.exists():
                time.sleep(1)
            process.terminate()
            process.wait()
        if folder.exists():
            with open(folder / "hours", "a") as hours:
                print(f"{(time.time() - start) / 3600:.3f}", file=hours)
        if code is None:
            return "stopped"
        last_line = run.log.read_text().splitlines()[-1]
        # A run that was killed between its last checkpoint and its end needs no more; --resume says so, with code 2.
        if code == 0 or "the run is finished" in last_line:
            (folder / "finished").touch()
            return None
        error = f"exit code {code}: {last_line}"
    return error


def try_lock(file: TextIO) -> bool:
    """Lock a file, unless somebody else has; whether it worked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def success(run: Run) -> float:
    """Mean success over tasks in the last evaluation."""
    with open(run.folder / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    values = [float(row["success_rate"]) for row in rows if row["global_step"] == rows[-1]["global_step"]]
    return sum(values) / len(values)


def run_all(args: Args, runs: list[Run], ray) -> int:
    """Run everything that is not finished. Returns the exit code."""
    stop = args.runs.resolve() / f"stop-{platform.node()}-{os.getpid()}"
    stop.parent.mkdir(parents=True, exist_ok=True)
    stop.unlink(missing_ok=True)  # of a killed process that had the same number
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(execute)
    waiting = [run for run in runs if not run.finished()]
    print(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    pending, failed, total = {}, [], sum(run.total for run in runs)
    bar = tqdm(total=total, initial=sum(map(steps_done, runs)), unit="step", unit_scale=True, disable=None)
    try:
        for run in waiting:
            pending[task.remote(run, stop)] = run
        while pending:
            ready, _ = ray.wait(list(pending), timeout=5)
            for reference in ready:
                run = pending.pop(reference)
                try:
                    error = ray.get(reference)
                except ray.exceptions.RayTaskError as problem:  # of `execute`: a full disk, say
                    error = str(problem).splitlines()[-1]
                except ray.exceptions.RayError as problem:
                    error = str(problem).splitlines()[0]
                if error:
                    failed.append((run, error))
                line = f"failed: {error}" if error else f"success {success(run):.2f}"
                tqdm.write(f"{run.folder.name}: {line}")
            bar.n = sum(map(steps_done, runs))
            bar.set_postfix(finished=f"{sum(run.finished() for run in runs)}/{len(runs)}")
    except KeyboardInterrupt:
        print("\ncheckpointing every run ...", file=sys.stderr)
        stop.touch()
        if pending:
            ray.wait(list(pending), num_returns=len(pending))
        return 130
    finally:
        stop.unlink(missing_ok=True)
        bar.close()
    for run, error in failed:
        print(f"failed: {run.folder}: {error}", file=sys.stderr)
    return 1 if failed else 0


def steps_done(run: Run) -> int:
    """Of its steps, those that count for the progress bar."""
    return run.total if run.finished() else last_step(run)


def fail(message: str) -> NoReturn:
    """End the program for bad input: one line on stderr, exit code 2."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def main(args: Args) -> int:
    """Do as the arguments say. Returns the exit code."""
    if args.suite:
        smoke = Path(args.runs, "smoke")
        args = replace(args, env_ids=["PointReach-v0"], scripts=["qmp_sac"], methods=["base", "qmp"], seeds=[1, 2])
        args = replace(args, runs=smoke, budget="laptop")
    if min(args.seeds, default=-1) < 0:
        fail(f"--seeds must be numbers from 0, not {args.seeds}")
    if args.jobs is not None and (args.jobs < 1 or args.address != "local"):
        fail("--jobs must be at least 1, and goes with a Ray of its own only; a cluster counts its own cores")
    runs = matrix(args)
    if args.dry_run:
        print("\n".join(" ".join(run.command) for run in runs))
        return 0
    folder = args.runs.resolve()
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        fail(f"--runs {args.runs}: {nearest} is no folder that can be written in")
    for run in runs:
        if run.begun_as() != " ".join(run.command):
            fail(f"{run.folder} was begun as: {run.begun_as()}; delete it, or choose another --runs")
    try:
        import ray
    except ImportError:
        fail("Ray is missing: pip install -r requirements-benchmark.txt")
    cores = {"num_cpus": args.jobs} if args.address == "local" else {}
    try:
        ray.init(address=args.address, include_dashboard=False, log_to_driver=False, logging_level="warning", **cores)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        fail(f"--address {args.address}: {str(error).splitlines()[0]}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Ray has set its own
    try:
        code = run_all(args, runs, ray)
    finally:
        ray.shutdown()
    if args.suite and code == 0:
        subprocess.run(
            [sys.executable, HERE / "plot.py", "--results", "--runs", folder, "--output", folder], check=True
        )
    return code


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
