"""How long does SAC take for a step and an update of Pendulum here, and in other implementations?

    python benchmark/peers.py --peers stable_baselines3=/tmp/sb3/bin/python sbx=/tmp/sbx/bin/python
    python benchmark/peers.py --ours qmp_sac.py "qmp_sac.py --no-qmp" ../old/qmp_sac.py

Ours train ten tasks at once, and their time is divided by ten; the others train one. All have two
hidden layers of 256, batches of 256, and make an update in each step. Every program runs for 150
steps and for 650, on Linux on one core; the difference of the processor's times counts. Medians are
over rounds in which all take turns.
"""

import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium as gym

N = 10  # tasks
START = 150  # steps of the shorter run
TRAIN = """
import gymnasium, {module}
net = {{'net_arch': [256, 256]}}
env = gymnasium.make('Pendulum-v1')
{module}.SAC('MlpPolicy', env, batch_size=256, policy_kwargs=net).learn({steps})
"""
FLAGS = f"--env-id peers:make_pendulums --batch-size 256 --learning-starts {100 * N}"
FLAGS += " --eval-frequency 1e9 --checkpoint-frequency 1e9"


def make_pendulums(render_mode: str | None = None) -> dict:
    """N Pendulum tasks for our scripts."""
    return {str(i): lambda: gym.make("Pendulum-v1", render_mode=render_mode) for i in range(N)}


def seconds(command: list, folder: str) -> float:
    """The processor's time that a command takes, of all its threads."""
    core = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent)}
    environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [*core, *command], cwd=folder, env=environ, stdout=subprocess.DEVNULL, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def time_ours(program: str, steps: int, folder: str) -> float:
    """The time of one of our scripts with its flags, for so many steps of each task."""
    script, *flags = shlex.split(program)
    words = [sys.executable, Path(script).absolute(), *FLAGS.split()]
    words += ["--total-timesteps", str(N * steps), *flags]
    return seconds(words, folder)


def time_peer(program: str, steps: int, folder: str) -> float:
    """The time of another implementation, MODULE=PYTHON, for so many steps."""
    module, _, python = program.partition("=")
    code = TRAIN.format(module=module, steps=steps)
    return seconds([Path(python).absolute(), "-c", code], folder)


def main(
    ours: tuple[str, ...] = ("qmp_sac.py", "qmp_sac.py --no-qmp"),
    peers: tuple[str, ...] = (),
    rounds: int = 5,
    steps: int = 500,
) -> None:
    """Time scripts with flags (ours) and modules, each MODULE=PYTHON (peers); print a table."""
    ms = {name: [] for name in [*ours, *peers]}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for name in ms:
                timer = time_peer if name in peers else time_ours
                short = timer(name, START, folder)
                long = timer(name, START + steps, folder)
                tasks = 1 if name in peers else N
                ms[name].append(1000 * (long - short) / steps / tasks)
    print(f"ms for a step and an update of a task, and in relation to {ours[0]}")
    for name, values in ms.items():
        ratios = [x / y for x, y in zip(values, ms[ours[0]], strict=True)]
        median = statistics.median(values)
        print(f"{median:8.2f} {statistics.median(ratios):6.2f}  {name}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
