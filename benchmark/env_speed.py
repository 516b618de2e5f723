"""Steps per second of one sub-environment of every kind, and of the package's environment that it builds on.

    python benchmark/env_speed.py    # prints a table; writes benchmark/results/env_speed.csv

Both take turns, a block of random steps each, in one process on one core; the median of the blocks counts.
"""

import csv
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import tyro
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import envs  # noqa: E402

gym.register_envs(gymnasium_robotics)


@dataclass
class Args:
    """Arguments."""

    blocks: int = 15
    """blocks of steps of each environment"""
    seconds: float = 0.3
    """about how long a block takes"""


def package_meta_world(name: str) -> gym.Env:
    """A task as the metaworld package makes it."""
    env = ALL_V3_ENVIRONMENTS[name]()
    env._partially_observable, env._freeze_rand_vec, env._set_task_called = False, False, True
    return env


PACKAGES: dict[str, tuple[int, str, Callable[[], gym.Env]]] = {  # our task, the package's environment
    "Walker2dMT4-v0": (0, "Walker2d-v5", lambda: gym.make("Walker2d-v5", disable_env_checker=True)),
    "KitchenMT10-v0": (
        0,
        "FrankaKitchen-v1",
        lambda: gym.make("FrankaKitchen-v1", tasks_to_complete=["microwave"], disable_env_checker=True),
    ),
    "MetaWorldCDS-v0": (2, "metaworld drawer-open-v3", lambda: package_meta_world("drawer-open-v3")),
    "MetaWorldMT10-v3": (0, "metaworld reach-v3", lambda: package_meta_world("reach-v3")),
}


def block(env: gym.Env, steps: int) -> float:
    """Take `steps` random steps, with resets where they are due. Returns steps per second."""
    actions = [env.action_space.sample() for _ in range(steps)]
    begin = time.perf_counter()
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            env.reset()
    return steps / (time.perf_counter() - begin)


def main(args: Args) -> None:
    """Measure all, print, write."""
    rows = []
    for env_id in envs.TASKS:
        task, package, make_package = PACKAGES.get(env_id, (0, "", None))
        both = [gym.make(f"qmp/{env_id}", task=task, disable_env_checker=True)]
        both += [gym.wrappers.TimeLimit(make_package(), 500) if make_package else None] * bool(make_package)
        for env in both:
            env.reset(seed=0)
            env.action_space.seed(0)
        steps = max(int(block(both[0], 100) * args.seconds), 10)
        speeds = [[block(env, steps) for env in both] for _ in range(args.blocks)]
        ours, *theirs = (statistics.median(column) for column in zip(*speeds, strict=True))
        ratio = statistics.median(row[0] / row[1] for row in speeds) if theirs else None
        rows.append([env_id, envs.TASKS[env_id][task], round(ours), package, *map(round, theirs)])
        rows[-1] += [""] * (5 - len(rows[-1])) + ([f"{ratio:.2f}"] if ratio else [""])
        print(
            f"{env_id:22}{ours:9,.0f} steps/s"
            + (f"   {theirs[0]:9,.0f} {package}, ratio {ratio:.2f}" if theirs else "")
        )
    path = ROOT / "benchmark" / "results" / "env_speed.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_id", "task", "steps_per_second", "package", "package_steps_per_second", "ratio"])
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
