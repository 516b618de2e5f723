"""Kill training runs at random moments, resume them, and compare each with a run that was never stopped.

    python benchmark/kills.py --kills 50

A run is killed by SIGKILL once or twice: at a random time, inside a random update, between two rows of
evaluations.csv, in the middle of writing a checkpoint, before it is renamed, and after. Then it is resumed to its end.
Equal means, to the last bit: weights, targets, optimisers, replay, random numbers, evaluations.csv and mixture.csv.
"""

import importlib
import io
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import torch
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

MOMENTS = ("any time", "update", "evaluation", "half a checkpoint", "before renaming", "after renaming")
COMMON = "--hidden-sizes 16 16 --batch-size 8 --eval-episodes 1".split()
STEPS = {  # training, evaluation, checkpoint
    "PointReach-v0": (2_400, 400, 600),
    "kills:make_pendulums": (1_500, 300, 400),
    "MultistageReacher-v0": (1_500, 500, 400),
    "MetaWorldCDS-v0": (800, 800, 200),
}


@dataclass
class Args:
    """Arguments."""

    script: str = "qmp_sac"
    """which script"""
    kills: int = 50
    """runs to kill"""
    env_ids: tuple[str, ...] = ("PointReach-v0", "MultistageReacher-v0", "PointReach-v0", "MetaWorldCDS-v0")
    """environments, taken in turns"""
    seed: int = 1
    """of the moments"""


class Balance(gym.Wrapper):
    """The inverted pendulum, with a success for standing upright."""

    def step(self, action):
        """One step; success is an angle below 0.05 rad."""
        obs, reward, terminated, truncated, _ = self.env.step(action)
        return obs, reward, terminated, truncated, {"success": float(abs(obs[1]) < 0.05)}


def make_pendulums(seed: int, vectorization: str, render_mode: str | None) -> VectorEnv:
    """Two pendulums in MuJoCo."""
    return SyncVectorEnv(
        [lambda: Balance(gym.make("InvertedPendulum-v5", render_mode=render_mode))] * 2,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )


def die() -> None:
    """End this process as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(script, moment: str, count: int) -> None:
    """Prepare this process to die at the `count`-th occasion of `moment`."""
    occasions = iter(range(count - 1))

    def occasion(before=None, after=None, owner=None, name=None):
        original = getattr(owner, name)

        def patched(*args):
            last = next(occasions, None) is None
            if last and before:
                before(*args)
            result = original(*args)
            if last and after:
                after(*args)
            return result

        setattr(owner, name, patched)

    def half_of(state, file):
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        die()

    def some_rows(step, tasks, metrics, evaluation, mixture, evaluations, *_):
        print(step, tasks[0], *evaluation[0].tolist(), sep=",", file=evaluations)
        evaluations.write(str(step)[:-1])  # the beginning of a row
        evaluations.flush()
        die()

    def checkpoint_only(source, target):
        if Path(target).name == "checkpoint.pt":
            die()

    save = torch.save
    if moment == "update":
        occasion(lambda *_: die(), None, script, "update")
    elif moment == "evaluation":
        occasion(some_rows, None, script, "log_evaluation")
    elif moment == "half a checkpoint":
        occasion(half_of, None, torch, "save")
    elif moment == "before renaming":
        occasion(checkpoint_only, None, os, "replace")
    elif moment == "after renaming":
        occasion(None, checkpoint_only, os, "replace")


def run(name: str, argv: list[str], moment: str, count: int) -> None:
    """What a child process does: the script, quietly, with a prepared death."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    script = importlib.import_module(name)
    kill_at(script, moment, count)
    script.main(argv)


def launch(name: str, argv: list[str], moment: str = "never", count: int = 0, delay: float | None = None) -> int | None:
    """Run the script in a child process; kill it after `delay` seconds, if any. Returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=run, args=(name, argv, moment, count))
    child.start()
    child.join(delay)
    child.kill()
    child.join()
    return child.exitcode


def same(a: object, b: object) -> bool:
    """Whether two checkpoints, or parts of them, are equal to the last bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a.keys() - {"wandb_id", "run_dir"})
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def equal(a: Path, b: Path) -> bool:
    """Whether two runs left the same checkpoint and the same CSV files."""
    states = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (a, b))
    files = ("evaluations.csv", "mixture.csv")
    return same(*states) and all((a / name).read_bytes() == (b / name).read_bytes() for name in files)


def main(args: Args) -> int:
    """Kill and resume. Returns the exit code: 0 if most runs were killed and each, resumed, equals the undisturbed."""
    importlib.import_module(args.script)  # once, for all children
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        commands, seconds = {}, {}
        for env_id in dict.fromkeys(args.env_ids):
            total, evaluation, checkpoint = STEPS[env_id]
            steps = ["--total-timesteps", total, "--eval-frequency", evaluation, "--checkpoint-frequency", checkpoint]
            start = ["--learning-starts", total // 10]
            commands[env_id] = ["--env-id", env_id, *map(str, steps + start), *COMMON]
            begin = time.monotonic()
            assert launch(args.script, [*commands[env_id], "--run-dir", f"{folder}/{env_id}"]) == 0
            seconds[env_id] = time.monotonic() - begin
        deaths = killed = exact = 0
        for i in range(args.kills):
            env_id, moment = args.env_ids[i % len(args.env_ids)], MOMENTS[i // len(args.env_ids) % len(MOMENTS)]
            run_dir, total = Path(folder) / f"{i}", STEPS[env_id][0]
            argv = [*commands[env_id], "--run-dir", str(run_dir)]
            before = deaths
            for _ in range(random.choice((1, 2))):
                count = random.randint(1, total // 40) if moment == "update" else random.randint(1, 4)
                delay = random.uniform(0, seconds[env_id]) if moment == "any time" else None
                resume = ["--resume"] if (run_dir / "checkpoint.pt").exists() else []
                if not resume:
                    shutil.rmtree(run_dir, ignore_errors=True)  # killed before its first checkpoint
                deaths += launch(args.script, argv + resume, moment, count, delay) == -signal.SIGKILL
            killed += deaths > before
            while not (run_dir / "checkpoint.pt").exists():
                shutil.rmtree(run_dir, ignore_errors=True)
                launch(args.script, argv)
            state = torch.load(run_dir / "checkpoint.pt", weights_only=True)
            if state["global_step"] < total:
                launch(args.script, [*argv, "--resume"])
            result = equal(Path(folder) / env_id, run_dir)
            exact += result
            print(f"{i + 1}: {env_id}, {moment}: {'equal' if result else 'DIFFERENT'}", flush=True)
            shutil.rmtree(run_dir)
    print(f"{args.kills} runs killed {deaths} times, {exact} equal to the run that was never stopped")
    return int(exact < args.kills or killed <= args.kills // 2)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
