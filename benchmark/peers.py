"""How long does SAC take for a step and an update of Pendulum here, and how long in other implementations?

    python benchmark/peers.py --peers stable_baselines3=/tmp/sb3/bin/python sbx=/tmp/sbx/bin/python
    python benchmark/peers.py --ours qmp_sac.py "qmp_sac.py --no-qmp" ../old/qmp_sac.py    # also of another checkout

Ours train ten tasks at once, and the time is divided by ten; the others train one. All have two hidden layers of 256,
batches of 256, and make an update in each step. Programs run as they are, by turns, on Linux on one core: the
environment takes the time, that of the processor. Medians over rounds, and of the ratios within a round.
"""

import importlib
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import gymnasium as gym

N, STEPS = 10, 100
WARM_UP = 500  # steps; until then ours tries an episode of 200, and the others compile
FLAGS = f"--env-id peers:pendulums --batch-size 256 --learning-starts {100 * N} --total-timesteps 1e7".split()


class Clock(gym.Wrapper):
    """Halts after WARM_UP steps, and then after every STEPS: prints the seconds since the last halt, awaits a line."""

    steps, since = 0, 0.0

    def step(self, action):
        if self.steps >= WARM_UP and (self.steps - WARM_UP) % STEPS == 0:
            print("seconds", time.process_time() - self.since, flush=True)  # of all threads
            if not sys.stdin.readline():
                os._exit(0)
            self.since = time.process_time()
        self.steps += 1
        return super().step(action)


def pendulums(seed: int, vectorization: str, render_mode: str | None) -> gym.vector.VectorEnv:
    """N Pendulum tasks for our scripts, the first with a clock."""
    tasks = [lambda: Clock(gym.make("Pendulum-v1"))] + (N - 1) * [lambda: gym.make("Pendulum-v1")]
    return gym.vector.SyncVectorEnv(tasks, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def train_peer(module: str) -> None:
    """Train the SAC of stable_baselines3, or of another module with the same interface."""
    env, net = Clock(gym.make("Pendulum-v1")), {"net_arch": [256, 256]}
    importlib.import_module(module).SAC("MlpPolicy", env, batch_size=256, policy_kwargs=net).learn(10**7)


def main(
    ours: tuple[str, ...] = ("qmp_sac.py", "qmp_sac.py --no-qmp"), peers: tuple[str, ...] = (), rounds: int = 5
) -> None:
    """Run scripts with flags (ours) and modules, each MODULE=PYTHON with its interpreter (peers); print a table."""
    core = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))] if sys.platform == "linux" else []
    commands = {}
    for script, *flags in map(shlex.split, ours):
        commands[" ".join([script, *flags])] = [*core, sys.executable, Path(script).absolute(), *FLAGS, *flags]
    for module, python in (peer.split("=") for peer in peers):
        commands[module] = [*core, python, "-c", f"import peers; peers.train_peer('{module}')"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent), "PYTHONWARNINGS": "ignore"}
    env |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
    ms, pipes = {name: [] for name in commands}, {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryDirectory() as cwd, ExitStack() as stack:
        programs = [subprocess.Popen(command, cwd=cwd, env=env, **pipes) for command in commands.values()]
        programs = dict(zip(commands, map(stack.enter_context, programs), strict=True))
        for i in range(rounds + 1):  # the first is the warm-up
            for name, program in programs.items():
                if i:
                    print(file=program.stdin, flush=True)
                seconds = next((line.split()[1] for line in program.stdout if line.startswith("seconds ")), None)
                if not seconds:
                    sys.exit(f"{name} has ended")
                ms[name].append(1e3 * float(seconds) / STEPS / (1 if "-c" in commands[name] else N))
    print(f"ms for a step and an update of a task, and in relation to {next(iter(ms))}")
    for name, (_, *values) in ms.items():
        ratio = statistics.median(x / y for x, y in zip(values, next(iter(ms.values()))[1:], strict=True))
        print(f"{statistics.median(values):8.2f} {ratio:6.2f}  {name}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
