"""Run a matrix of environment x script x method x seed, on this machine or on a Ray cluster.

    python benchmark/run.py --seeds 1 2 3 4 5                           # PointReach, all scripts
    python benchmark/run.py --env-ids Maze-v0 --budget paper --print    # only print the commands
    python benchmark/run.py --env-ids my_tasks:make_tasks --gamma 0.98  # your own tasks and flags
    python benchmark/run.py --address auto                              # a cluster, shared files

Flags that this program does not know go to the scripts. Every run has a folder in runs/benchmark/
and a log beside it. After Ctrl-C or a crash start the same command again: finished runs are
skipped, the others resume from their checkpoints. A run that fails is resumed, up to three attempts
in all. The exit code is 1 if a run kept failing. Needs requirements-benchmark.txt.
"""

import itertools
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {  # and the names of their base methods in figures and tables
    "qmp_sac": "separate SAC agents",
    "qmp_mtsac": "shared networks",
    "qmp_dnc": "Divide-and-Conquer",
    "qmp_uds": "shared data",
}
ATTEMPTS = 3
LAST_LINES = 8  # of a log that are shown after a failure


@dataclass(frozen=True)
class Setting:
    """Flags of an environment's runs."""

    paper: str
    """total steps in the paper"""
    laptop: str
    """total steps where time is short; all else that matters to learning stays the same"""
    flags: str = ""
    """of every script"""
    separate: str = ""
    """of qmp_sac.py, qmp_dnc.py and qmp_uds.py, whose tasks have networks of their own"""
    shared: str = ""
    """of qmp_mtsac.py, whose tasks share one network"""
    switch: dict = field(default_factory=dict)
    """arguments of methods with a switch"""


# The hyper-parameters of the authors' program (clvrai/qmp at 278a76b), as tests/test_benchmark.py
# derives them. Its KL coefficient is 0, which is qmp_sac.py, and the paper names none, so
# qmp_dnc.py runs with its default.
SETTINGS = {
    # Ours: 8,000 steps of every task, of which 400 are random.
    "PointReach2-v0": Setting(
        paper="16_000",
        laptop="16_000",
        flags="--learning-starts 800 --eval-episodes 10",
    ),
    "PointReach-v0": Setting(
        paper="40_000",
        laptop="40_000",
        flags="--eval-episodes 10",
    ),
    "PointReach9-v0": Setting(
        paper="72_000",
        laptop="72_000",
        flags="--learning-starts 3_600 --eval-episodes 10",
    ),
    "MultistageReacher-v0": Setting(
        paper="2e6",
        laptop="600_000",
        flags="--eval-episodes 10 --eval-frequency 20_000",
        separate="--batch-size 32 --learning-starts 50_000",
        shared="--batch-size 6 --gradient-steps 5 --learning-starts 10_000 "
        "--buffer-size 200_000 --policy-lr 1e-3 --q-lr 1e-3 --hidden-sizes 512 512",
    ),
    "Maze-v0": Setting(
        paper="12e6",
        laptop="3e6",
        flags="--eval-episodes 10 --eval-frequency 50_000",
        separate="--batch-size 256 --train-frequency 6 --learning-starts 30_000",
        shared="--batch-size 26 --train-frequency 3 --gradient-steps 5 --learning-starts 3_000 "
        "--buffer-size 100_000",
    ),
    "MetaWorldCDS-v0": Setting(
        paper="10e6",
        laptop="2e6",
        flags="--eval-episodes 10 --eval-frequency 50_000 --policy-lr 1.5e-3 --q-lr 1.5e-3",
        separate="--batch-size 256 --train-frequency 10 --learning-starts 20_000",
        shared="--batch-size 64 --train-frequency 5 --gradient-steps 2 --learning-starts 5_000 "
        "--buffer-size 250_000",
    ),
    "MetaWorldMT10-v3": Setting(
        paper="40e6",
        laptop="2e6",
        # Meta-World's protocol: an episode for each of a task's 50 goals. The authors have ten.
        flags="--eval-episodes 50 --eval-frequency 100_000 --policy-lr 1.5e-3 --q-lr 1.5e-3",
        separate="--batch-size 2560 --train-frequency 10 --learning-starts 50_000",
        shared="--batch-size 256 --learning-starts 5_000 --buffer-size 100_000",
        switch={"own_policy_prob": 0.7},
    ),
    "MetaWorldMT50-v3": Setting(
        paper="30e6",
        laptop="2e6",
        # Five episodes a task are 125,000 steps, as many as are trained between evaluations.
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
        shared="--batch-size 128 --train-frequency 2 --gradient-steps 5 --learning-starts 2_000 "
        "--buffer-size 100_000",
    ),
}

# Colours mean the same in every figure.
GREY = "#7a7a7a"  # without QMP
BLUE = "#0072B2"  # QMP
SKY = "#56B4E9"  # QMP, by Eq. 2
GREEN = "#009E73"  # QMP, the choice held for ten steps
ORANGE = "#E69F00"  # random controls
RED = "#D55E00"  # random controls, the choice held for ten steps
SOLID = "-"
DASHED = (0, (4, 1.5))
DOTTED = (0, (1, 1))


@dataclass(frozen=True)
class Method:
    """A base method, QMP, or a variant of either."""

    title: str
    """its name in figures and tables"""
    arguments: dict
    """arguments of a script that differ from the defaults"""
    color: str
    linestyle: str | tuple = SOLID
    scripts: tuple[str, ...] = tuple(SCRIPTS)
    """scripts that have it"""

    def has_switch(self) -> bool:
        return self.arguments.get("qmp", True)


METHODS = {
    "base": Method("without QMP", {"qmp": False}, GREY),
    "qmp": Method("QMP", {}, BLUE),
    "qmp-eq2": Method(
        "QMP, Eq. 2 with one sample", {"switch_samples": 1, "switch_entropy": True}, SKY
    ),
    "qmp-period-10": Method("QMP, held for 10 steps", {"switch_period": 10}, GREEN),
    "qmp-uniform": Method(
        "random policy, every step", {"switch_rule": "uniform"}, ORANGE, linestyle=DASHED
    ),
    "qmp-uniform-period-10": Method(
        "random policy, held for 10 steps",
        {"switch_rule": "uniform", "switch_period": 10},
        RED,
        linestyle=DASHED,
    ),
    "qmp-uniform-own-80": Method(
        "own policy 80%, else random",
        {"switch_rule": "uniform", "own_policy_prob": 0.8},
        ORANGE,
        linestyle=DOTTED,
    ),
    "qmp-uniform-own-60": Method(
        "own policy 60%, else random",
        {"switch_rule": "uniform", "own_policy_prob": 0.6},
        ORANGE,
        linestyle=DOTTED,
    ),
    "qmp-uniform-period-10-own-80": Method(
        "own policy 80%, else random, held for 10 steps",
        {"switch_rule": "uniform", "switch_period": 10, "own_policy_prob": 0.8},
        RED,
        linestyle=DOTTED,
    ),
    "fully-shared": Method(
        "one policy for all tasks",
        {"qmp": False, "fully_shared": True},
        GREY,
        DOTTED,
        ("qmp_mtsac",),
    ),
    "base-pcgrad": Method(
        "PCGrad without QMP", {"qmp": False, "pcgrad": True}, GREY, DASHED, ("qmp_mtsac",)
    ),
    "qmp-pcgrad": Method("PCGrad with QMP", {"pcgrad": True}, BLUE, DASHED, ("qmp_mtsac",)),
    "base-double-tanh": Method(
        "double tanh without QMP", {"qmp": False, "double_tanh": True}, GREY, DASHED, ("qmp_mtsac",)
    ),
    "qmp-double-tanh": Method(
        "double tanh with QMP", {"double_tanh": True}, BLUE, DASHED, ("qmp_mtsac",)
    ),
    "qmp-double-tanh-own-999": Method(
        "double tanh, own policy 99.9%",
        {"double_tanh": True, "own_policy_prob": 0.999},
        BLUE,
        linestyle=DOTTED,
        scripts=("qmp_mtsac",),
    ),
    # About a quarter of PointReach's training. At 10,000 steps a distillation would come right
    # before the last evaluation, which would then measure the central policy.
    "base-distill": Method(
        "distillation without QMP",
        {"qmp": False, "distill_period": 11_000},
        GREY,
        linestyle=DASHED,
        scripts=("qmp_dnc",),
    ),
    "qmp-distill": Method(
        "distillation with QMP", {"distill_period": 11_000}, BLUE, DASHED, ("qmp_dnc",)
    ),
    "base-quantile-90": Method(
        "filtered sharing without QMP",
        {"qmp": False, "sharing_quantile": 0.9},
        GREY,
        linestyle=DASHED,
        scripts=("qmp_uds",),
    ),
    "qmp-quantile-90": Method(
        "filtered sharing with QMP", {"sharing_quantile": 0.9}, BLUE, DASHED, ("qmp_uds",)
    ),
}


@dataclass
class Args:
    """Flags that are not listed here go to the scripts and win against the tables of run.py."""

    env_ids: list[str] = field(default_factory=lambda: ["PointReach-v0"])
    """environments, any that the scripts take; SETTINGS has flags for some of them"""
    scripts: list[Literal[tuple(SCRIPTS)]] = field(default_factory=lambda: list(SCRIPTS))
    """base methods"""
    methods: list[Literal[tuple(METHODS)]] = field(default_factory=lambda: ["base", "qmp"])
    """the base method alone, QMP, variants; each is run with the scripts that have it"""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """seeds"""
    budget: Literal["laptop", "paper"] = "laptop"
    """length of training; a run that was finished at one resumes to the other"""
    runs: Path = ROOT / "runs" / "benchmark"
    """where the run folders go"""
    address: str = "local"
    """Ray's address: local, or auto, or that of a cluster's head"""
    jobs: int | None = None
    """runs at a time on this machine; default: one for each core"""
    gpus: float = 0.0
    """part of a GPU that a run takes, 0.25 say"""
    print: bool = False
    """print the commands only"""


def to_flags(arguments: dict) -> list[str]:
    """The words of a command line that set a script's arguments."""
    words = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if value is True:
            words.append(f"--{flag}")
        elif value is False:
            words.append(f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def command(
    env_id: str,
    script: str,
    method: str,
    seed: int,
    budget: str = "laptop",
    more: Sequence[str] = (),
) -> list[str]:
    """A run's command, word by word. Of a flag that is there twice, the last one counts."""
    words = ["python", f"{script}.py", "--env-id", env_id, "--seed", str(seed)]
    setting = SETTINGS.get(env_id)
    if setting:
        words += ["--total-timesteps", getattr(setting, budget)]
        words += setting.flags.split()
        family = setting.shared if script == "qmp_mtsac" else setting.separate
        words += family.split()
        if METHODS[method].has_switch():
            words += to_flags(setting.switch)
    return [*words, *to_flags(METHODS[method].arguments), *more]


def matrix(args: Args, more: Sequence[str] = ()) -> dict[Path, list[str]]:
    """Folder and command of every run, seed by seed, so that early results compare everything."""
    runs = {}
    cases = itertools.product(args.seeds, args.env_ids, args.scripts, args.methods)
    for seed, env_id, script, method in cases:
        if script in METHODS[method].scripts:
            name = f"{env_id.replace(':', '-')}__{script}__{method}__{seed}"
            folder = args.runs.resolve() / name
            runs[folder] = command(env_id, script, method, seed, args.budget, more)
    return runs


def read_log(folder: Path) -> list[str]:
    """Lines of a run's log: for each attempt "$ COMMAND", output, "exit code C after H hours"."""
    path = Path(f"{folder}.log")
    if not (path.exists() and folder.exists()):
        return []
    return path.read_text(errors="replace").splitlines()


def read_flags(words: Sequence[str]) -> dict[str, list[str]]:
    """The flags among the words of a command, with their values."""
    flags = {}
    for word in words:
        if word.startswith("--"):
            flag, _, value = word.partition("=")
            flags[flag] = [value] if value else []
        elif flags:
            flags[flag].append(word)
    return flags


def is_finished(folder: Path, command: Sequence[str]) -> bool:
    """Whether the run's last attempt had the flags of this command and trained to the end."""
    log = read_log(folder)
    commands = [line for line in log if line.startswith("$ ")]
    if not commands or not log[-1].startswith("exit code 0 "):
        return False
    return read_flags(shlex.split(commands[-1])) == read_flags(command)


def train(folder: Path, command: Sequence[str], cwd: Path) -> int:
    """Start a run, or resume it if it has a checkpoint. Returns its exit code."""
    resume = (folder / "checkpoint.pt").exists()
    if folder.exists() and not resume:  # it was killed before its first checkpoint
        folder.rename(f"{folder}__no-checkpoint__{time.time_ns()}")
    start_time = time.time()
    with open(f"{folder}.log", "a" if resume else "w") as log:
        print("$", shlex.join(command), file=log, flush=True)
        words = [sys.executable, ROOT / command[1], *command[2:]]
        words += ["--resume" if resume else "--run-dir", folder]
        code = subprocess.run(words, cwd=cwd, stdout=log, stderr=subprocess.STDOUT).returncode
        hours = (time.time() - start_time) / 3600
        print(f"exit code {code} after {hours:.3f} hours", file=log)
    return code


def execute(folder: Path, command: Sequence[str], cwd: Path | None = None) -> str:
    """Train to the end. Returns an empty text, or the end of the log if that failed.

    `cwd` is where the user's own tasks lie; by default this process's folder.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        code = train(folder, command, cwd or Path.cwd())
        if code == 0:
            return ""
        if code == 2:  # bad input, which another attempt would not mend
            break
    return "\n".join(read_log_end(folder))


def read_log_end(folder: Path) -> list[str]:
    """The last lines of a run's log."""
    return Path(f"{folder}.log").read_text(errors="replace").splitlines()[-LAST_LINES:]


def run_all(waiting: dict[Path, list[str]], args: Args, total: int) -> int:
    """Run what is waiting, of `total` runs. Returns how many failed."""
    import ray  # not needed by those who only print

    cores = {}
    if args.address == "local":
        cores["num_cpus"] = args.jobs
    # Ray ends the runs that it started when this program ends, in whatever way.
    ray.init(
        args.address, include_dashboard=False, log_to_driver=False, logging_level="error", **cores
    )
    remote_execute = ray.remote(num_cpus=1, num_gpus=args.gpus, max_retries=ATTEMPTS)(execute)
    pending = {}
    for folder, words in waiting.items():
        pending[remote_execute.remote(folder, words, Path.cwd())] = folder
    failed = 0
    with tqdm(total=total, initial=total - len(waiting), unit="run", disable=None) as bar:
        while pending:
            (reference,), _ = ray.wait(list(pending))
            folder = pending.pop(reference)
            try:
                error = ray.get(reference)
            except ray.exceptions.RayError as problem:  # a full disk or a lost machine, say
                error = str(problem)
            if error:
                failed += 1
                bar.write(f"{folder.name}: failed; see {folder}.log\n{error}")
            else:
                bar.update()
                bar.write(f"{folder.name}: finished")
    return failed


def main(args: Args, more: list[str]) -> int:
    """Run all that is not finished, with further flags `more`. Returns the exit code."""
    runs = matrix(args, more)
    if not runs:
        methods = ", ".join(args.methods)
        scripts = ", ".join(args.scripts)
        print(f"run.py: error: {scripts} has no method {methods}", file=sys.stderr)
        return 2
    if args.print:
        for words in runs.values():
            print(shlex.join(words))
        return 0
    waiting = {}
    for folder, words in runs.items():
        if not is_finished(folder, words):
            waiting[folder] = words
    finished = len(runs) - len(waiting)
    print(f"{len(runs)} runs in {args.runs}, {finished} of them finished before", flush=True)
    if not waiting:
        return 0
    try:
        failed = run_all(waiting, args, len(runs))
    except (ImportError, ConnectionError) as error:
        print(f"run.py: error: no Ray (see requirements-benchmark.txt): {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    # Jobs in the background of a shell ignore Ctrl-C otherwise, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main(*tyro.cli(Args, return_unknown_args=True)))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command resumes every run")
