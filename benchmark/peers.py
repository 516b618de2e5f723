"""How long does SAC take for a step and an update of Pendulum here, and how long in other implementations?

    python benchmark/peers.py --peers stable_baselines3=/tmp/sb3/bin/python sbx=/tmp/sbx/bin/python
    python benchmark/peers.py --ours qmp_sac.py "qmp_sac.py --no-qmp" ../old/qmp_sac.py    # also of another checkout

Ours train ten tasks at once, and the time is divided by ten; the others train one. All have two hidden layers of 256,
batches of 256, and make an update in each step. Every program runs for 150 steps and for 650, on Linux on one core;
the difference of the processor's times counts. Medians over rounds in which all take turns.
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

N, STEPS = 10, 150
TRAIN = "import gymnasium, {0}; net = {{'net_arch': [256, 256]}}; "
TRAIN += "{0}.SAC('MlpPolicy', gymnasium.make('Pendulum-v1'), batch_size=256, policy_kwargs=net).learn({1})"
FLAGS = f"--env-id peers:pendulums --batch-size 256 --learning-starts {100 * N} --eval-frequency 1e9".split()


def pendulums(seed: int, vectorization: str, render_mode: str | None) -> gym.vector.VectorEnv:
    """N Pendulum tasks for our scripts."""
    tasks = N * [lambda: gym.make("Pendulum-v1")]
    return gym.vector.SyncVectorEnv(tasks, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def seconds(command: list[str], folder: str) -> float:
    """The processor's time that a command takes, of all its threads."""
    core = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent), "PYTHONWARNINGS": "ignore"}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*core, *command], cwd=folder, env=env, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(
    ours: tuple[str, ...] = ("qmp_sac.py", "qmp_sac.py --no-qmp"),
    peers: tuple[str, ...] = (),
    rounds: int = 5,
    steps: int = 500,
) -> None:
    """Time scripts with flags (ours) and modules, each MODULE=PYTHON with its interpreter (peers); print a table."""
    ms = {name: [] for name in [*ours, *peers]}
    with tempfile.TemporaryDirectory() as folder:
        for name in rounds * list(ms):
            script, *flags = shlex.split(name)
            module, _, python = name.partition("=")
            times = []
            for end in (STEPS, STEPS + steps):
                run = [sys.executable, Path(script).absolute(), *FLAGS, "--total-timesteps", str(N * end), *flags]
                times.append(
                    seconds(
                        [Path(python).absolute(), "-c", TRAIN.format(module, end)] if name in peers else run, folder
                    )
                )
            ms[name].append(1e3 * (times[1] - times[0]) / steps / (1 if name in peers else N))
    print(f"ms for a step and an update of a task, and in relation to {ours[0]}")
    for name, values in ms.items():
        ratio = statistics.median(x / y for x, y in zip(values, ms[ours[0]], strict=True))
        print(f"{statistics.median(values):8.2f} {ratio:6.2f}  {name}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
