"""Run a matrix of environment x script x method x seed, some runs at a time, on one machine or on a Ray cluster.

    python benchmark/run.py --seeds 1 2 3 4 5                                # PointReach, four scripts, base and QMP
    python benchmark/run.py --env-ids Maze-v0 --budget paper --print         # only print the commands
    python benchmark/run.py --env-ids my_tasks:make_envs --batch-size 64     # your own tasks and flags
    python benchmark/run.py --address auto                                   # on a cluster that shares its files

Flags that are not of this program go to the scripts. Every run leaves its folder in runs/benchmark/ and its output in a
log beside it. Start the same command again after a crash: finished runs are skipped, others go on from their
checkpoints. Ctrl-C checkpoints all. A run that fails is tried again from its checkpoint, three times in all. The exit
code is 1 if one kept failing. Needs requirements-benchmark.txt.
"""

import itertools
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from filelock import FileLock
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
ATTEMPTS = 3


@dataclass(frozen=True)
class Setting:
    """Flags of an environment's runs."""

    paper: str
    """total steps in the paper"""
    laptop: str
    """total steps where time is short; all else that matters to learning stays as it is"""
    flags: str = ""
    """of every script"""
    separate: str = ""
    """of qmp_sac.py, qmp_dnc.py and qmp_uds.py, whose tasks have networks of their own"""
    shared: str = ""
    """of qmp_mtsac.py, whose tasks share one"""
    switch: str = ""
    """of methods with a switch"""


# The hyper-parameters of the authors' program (clvrai/qmp at 278a76b), as tests/test_benchmark.py derives them. Its
# coefficient of qmp_dnc.py's divergences is 0, which is qmp_sac.py, and the paper names none: here 0.01, the default.
SETTINGS = {
    # Ours: 8,000 steps of every task, of which 400 are random.
    "PointReach2-v0": Setting("16_000", "16_000", "--learning-starts 800 --eval-episodes 10"),
    "PointReach-v0": Setting("40_000", "40_000", "--eval-episodes 10"),
    "PointReach9-v0": Setting("72_000", "72_000", "--learning-starts 3_600 --eval-episodes 10"),
    "MultistageReacher-v0": Setting(
        paper="2e6",
        laptop="600_000",
        flags="--eval-episodes 10 --eval-frequency 20_000",
        separate="--batch-size 32 --learning-starts 50_000",
        shared="--batch-size 6 --gradient-steps 5 --learning-starts 10_000 --buffer-size 200_000 "
        "--policy-lr 1e-3 --q-lr 1e-3 --hidden-sizes 512 512",
    ),
    "Maze-v0": Setting(
        paper="12e6",
        laptop="3e6",
        flags="--eval-episodes 10 --eval-frequency 50_000",
        separate="--batch-size 256 --train-frequency 6 --learning-starts 30_000",
        shared="--batch-size 26 --train-frequency 3 --gradient-steps 5 --learning-starts 3_000 --buffer-size 100_000",
    ),
    "MetaWorldCDS-v0": Setting(
        paper="10e6",
        laptop="2e6",
        flags="--eval-episodes 10 --eval-frequency 50_000 --policy-lr 1.5e-3 --q-lr 1.5e-3",
        separate="--batch-size 256 --train-frequency 10 --learning-starts 20_000",
        shared="--batch-size 64 --train-frequency 5 --gradient-steps 2 --learning-starts 5_000 --buffer-size 250_000",
    ),
    "MetaWorldMT10-v3": Setting(
        paper="40e6",
        laptop="2e6",
        # Meta-World's protocol: an episode for each of the 50 goals of a task, where the authors have ten.
        flags="--eval-episodes 50 --eval-frequency 100_000 --policy-lr 1.5e-3 --q-lr 1.5e-3",
        separate="--batch-size 2560 --train-frequency 10 --learning-starts 50_000",
        shared="--batch-size 256 --learning-starts 5_000 --buffer-size 100_000",
        switch="--own-policy-prob 0.7",
    ),
    "MetaWorldMT50-v3": Setting(
        paper="30e6",
        laptop="2e6",
        # 50 episodes would take ten minutes each time.
        flags="--eval-episodes 5 --eval-frequency 100_000 --hidden-sizes 400 400",
        separate="--batch-size 1280 --train-frequency 10 --learning-starts 75_000",
        shared="--batch-size 26 --gradient-steps 5 --learning-starts 1_500 --buffer-size 20_000",
    ),
    "Walker2dMT4-v0": Setting(
        paper="8e6",
        laptop="1e6",
        flags="--eval-episodes 10 --eval-frequency 50_000",
        separate="--batch-size 32 --train-frequency 2 --gradient-steps 3 --learning-starts 40_000",
        shared="--batch-size 8 --gradient-steps 6 --learning-starts 10_000 --buffer-size 250_000",
    ),
    "KitchenMT10-v0": Setting(
        paper="5e6",
        laptop="1e6",
        flags="--eval-episodes 5 --eval-frequency 50_000",
        separate="--batch-size 1280 --train-frequency 4 --learning-starts 20_000",
        shared="--batch-size 128 --train-frequency 2 --gradient-steps 5 --learning-starts 2_000 --buffer-size 100_000",
    ),
}
METHODS = {
    "base": "--no-qmp",
    "qmp": "",
    "qmp-eq2": "--switch-samples 1 --switch-entropy",
    "qmp-period-10": "--switch-period 10",
    "qmp-uniform": "--switch-rule uniform",
    "qmp-uniform-period-10": "--switch-rule uniform --switch-period 10",
    "qmp-uniform-own-80": "--switch-rule uniform --own-policy-prob 0.8",
    "qmp-uniform-own-60": "--switch-rule uniform --own-policy-prob 0.6",
    "qmp-uniform-period-10-own-80": "--switch-rule uniform --switch-period 10 --own-policy-prob 0.8",
    "fully-shared": "--no-qmp --fully-shared",
    "base-pcgrad": "--no-qmp --pcgrad",
    "qmp-pcgrad": "--pcgrad",
    "base-distill": "--no-qmp --distill-period 10_000",
    "qmp-distill": "--distill-period 10_000",
    "base-double-tanh": "--no-qmp --double-tanh",
    "qmp-double-tanh": "--double-tanh",
    "qmp-double-tanh-own-999": "--double-tanh --own-policy-prob 0.999",
    "base-quantile-90": "--no-qmp --sharing-quantile 0.9",
    "qmp-quantile-90": "--sharing-quantile 0.9",
}
# Methods of one script.
ONLY = {method: "qmp_mtsac" for method in METHODS if method == "fully-shared" or "double-tanh" in method}
ONLY |= dict.fromkeys(("base-pcgrad", "qmp-pcgrad"), "qmp_mtsac")
ONLY |= dict.fromkeys(("base-distill", "qmp-distill"), "qmp_dnc")
ONLY |= dict.fromkeys(("base-quantile-90", "qmp-quantile-90"), "qmp_uds")
Script = Literal["qmp_sac", "qmp_mtsac", "qmp_dnc", "qmp_uds"]


@dataclass
class Args:
    """Flags that are not listed here go to the scripts, after those of benchmark/run.py's tables."""

    env_ids: list[str] = field(default_factory=lambda: ["PointReach-v0"])
    """environments, any that the scripts take; those that SETTINGS lacks have the scripts' defaults"""
    scripts: list[Script] = field(default_factory=lambda: list(Script.__args__))
    """base methods"""
    methods: list[Literal[tuple(METHODS)]] = field(default_factory=lambda: ["base", "qmp"])
    """the base method alone, QMP by default, variants of its switch; fully-shared and those with a double tanh are of
    qmp_mtsac only, those with a quantile of qmp_uds"""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """seeds"""
    budget: Literal["laptop", "paper"] = "laptop"
    """length of training; a run that was finished at one goes on to the other"""
    runs: Path = ROOT / "runs" / "benchmark"
    """where the run folders go"""
    address: str = "local"
    """Ray's address: local, or auto, or that of a cluster's head"""
    jobs: int | None = None
    """runs at a time on this machine; default one for each core"""
    gpus: float = 0.0
    """part of a GPU that a run takes, 0.25 say"""
    print: bool = False
    """print the commands only"""


def command(
    env_id: str, script: str, method: str, seed: int, budget: str = "laptop", more: Sequence[str] = ()
) -> list[str]:
    """A run's command, word by word, as a user would type it; flags in `more` replace those of the tables."""
    line = f"python {script}.py --env-id {env_id} --seed {seed}"
    if setting := SETTINGS.get(env_id):
        line += f" --total-timesteps {getattr(setting, budget)} {setting.flags}"
        line += f" {setting.shared if script == 'qmp_mtsac' else setting.separate}"
        line += f" {setting.switch if method.startswith('qmp') else ''}"
    words, kept = [], True
    for word in f"{line} {METHODS[method]}".split():
        kept = word not in more if word.startswith("--") else kept  # with its values
        words += [word] * kept
    return [*words, *more]


def matrix(args: Args, more: Sequence[str] = ()) -> dict[Path, list[str]]:
    """Folder and command of every run, seed by seed, so that early results compare everything."""
    runs = {}
    for seed, env_id, script, method in itertools.product(args.seeds, args.env_ids, args.scripts, args.methods):
        if ONLY.get(method, script) == script:
            folder = args.runs.resolve() / f"{env_id.replace(':', '-')}__{script}__{method}__{seed}"
            runs[folder] = command(env_id, script, method, seed, args.budget, more)
    return runs


def log_of(folder: Path) -> list[str]:
    """Lines of a run's log: for every start "$ COMMAND", the output, "exit code C after H hours"."""
    path = Path(f"{folder}.log")
    return path.read_text().splitlines() if path.exists() and (folder / "checkpoint.pt").exists() else []


def finished(folder: Path, command: list[str]) -> bool:
    """Whether a run has been finished with this command."""
    log = log_of(folder)
    started = [line for line in log if line.startswith("$ ")]
    return bool(started) and started[-1] == f"$ {shlex.join(command)}" and log[-1].startswith("exit code 0 ")


def execute(folder: Path, command: list[str]) -> str:
    """Train to the end, from the checkpoint if there is one. Returns the last lines of the log if that failed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        resume = False
        if folder.exists():
            with FileLock(folder / "running.lock"):  # a training may have outlived the worker that started it
                resume = (folder / "checkpoint.pt").exists()
                if not resume:
                    shutil.rmtree(folder)
        where = ["--resume" if resume else "--run-dir", str(folder)]
        start = time.time()
        with open(f"{folder}.log", "a" if resume else "w") as log:
            print("$", shlex.join(command), file=log, flush=True)
            output = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            process = subprocess.Popen([sys.executable, *command[1:], *where], cwd=ROOT, **output)
            try:
                while process.poll() is None:
                    time.sleep(0.5)  # Ray's cancel interrupts no process.wait()
            finally:
                process.terminate()
                code = process.wait()
                print(f"exit code {code} after {(time.time() - start) / 3600:.3f} hours", file=log)
        if code == 0:
            return ""
        if code in (2, 130, 143):  # the input is bad, or it was told to stop
            break
    with open(f"{folder}.log") as log:
        return "".join(deque(log, maxlen=8))


def main(args: Args, more: list[str]) -> int:
    """Run all that is not finished, with further flags `more`. Returns the exit code."""
    switch = [flag for flag in more if flag.startswith(("--switch-", "--own-policy-"))]
    without = [method for method in args.methods if not method.startswith("qmp")]
    if switch and without:
        print(f"run.py: error: {switch[0]} is of methods with a switch, not of {without[0]}", file=sys.stderr)
        return 2
    runs = matrix(args, more)
    if not runs:
        print(f"run.py: error: {', '.join(args.methods)} is not of {', '.join(args.scripts)}", file=sys.stderr)
        return 2
    if args.print:
        print("\n".join(map(shlex.join, runs.values())))
        return 0
    waiting = {folder: command for folder, command in runs.items() if not finished(folder, command)}
    print(f"{len(runs)} runs in {args.runs}, {len(runs) - len(waiting)} of them finished before", flush=True)
    if not waiting:
        return 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs and what they start ignore it
    cores = {"num_cpus": args.jobs} if args.address == "local" else {}
    try:
        import ray  # not needed by those who only print

        ray.init(args.address, include_dashboard=False, log_to_driver=False, logging_level="warning", **cores)
    except (ImportError, ConnectionError) as error:
        print(f"run.py: error: no Ray (see requirements-benchmark.txt): {error}", file=sys.stderr)
        return 2
    train = ray.remote(num_cpus=1, num_gpus=args.gpus, max_retries=ATTEMPTS)(execute)
    pending = {train.remote(*run): run[0] for run in waiting.items()}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    failed = 0
    with tqdm(total=len(runs), initial=len(runs) - len(pending), unit="run", disable=None) as bar:
        try:
            while pending:
                (reference,), _ = ray.wait(list(pending))
                folder = pending.pop(reference)
                try:
                    error = ray.get(reference)
                except ray.exceptions.RayError as problem:  # of `execute` (a full disk, say), or of its node
                    error = str(problem)
                failed += bool(error)
                bar.update(not error)
                bar.write(f"{folder.name}: " + (f"failed; see {folder}.log\n{error}" if error else "finished"))
        except KeyboardInterrupt:
            print("checkpointing every run ...", file=sys.stderr)
            for reference in pending:
                ray.cancel(reference)
            ray.wait(list(pending), num_returns=len(pending))
            return 130
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*tyro.cli(Args, return_unknown_args=True)))
