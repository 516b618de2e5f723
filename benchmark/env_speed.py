"""Steps per second of environments: one task, the package's it builds on, all tasks in one and in many processes.

    python benchmark/env_speed.py    # prints a table; writes benchmark/results/env_speed.csv

What is compared takes turns, a block of random steps each; the median of the blocks counts. A single task and the
package's environment run in one process on one core; all tasks with --vectorization async on as many as there are.
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
    output: Path = ROOT / "benchmark" / "results" / "env_speed.csv"
    """the file to write"""


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


def block(env: gym.Env | gym.vector.VectorEnv, steps: int) -> float:
    """Take `steps` random steps, with resets where they are due. Returns steps per second, of all tasks together."""
    actions, N = [env.action_space.sample() for _ in range(steps)], getattr(env, "num_envs", 1)
    begin = time.perf_counter()
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        if N == 1 and (terminated or truncated):
            env.reset()
    return N * steps / (time.perf_counter() - begin)


def compare(args: Args, compared: list[gym.Env | gym.vector.VectorEnv]) -> tuple[list[float], float | None]:
    """Median steps per second of one or two environments, which are closed, and of first to second (None if one)."""
    for env in compared:
        env.reset(seed=0)
        env.action_space.seed(0)
    N = getattr(compared[0], "num_envs", 1)
    steps = max(int(block(compared[0], 100) / N * args.seconds), 10)
    speeds = [[block(env, steps) for env in compared] for _ in range(args.blocks)]
    for env in compared:
        env.close()
    ratio = statistics.median(row[0] / row[1] for row in speeds) if len(compared) > 1 else None
    return [statistics.median(column) for column in zip(*speeds, strict=True)], ratio


def main(args: Args) -> None:
    """Measure all, print, write."""
    rows = []
    for env_id, tasks in envs.TASKS.items():
        if env_id in ("PointReach2-v0", "PointReach8-v0"):  # as PointReach-v0
            continue
        task, package, make_package = PACKAGES.get(env_id, (0, "", None))
        single = [gym.make(f"qmp/{env_id}", task=task, disable_env_checker=True)]
        single += [gym.wrappers.TimeLimit(make_package(), 500)] if make_package else []
        (ours, *theirs), ratio = compare(args, single)
        everything = [envs.make_vec(env_id, 0, vectorization) for vectorization in ("sync", "async")]
        (sync, parallel), _ = compare(args, everything)
        rows.append([env_id, tasks[task], round(ours), package, round(theirs[0]) if theirs else ""])
        rows[-1] += [f"{ratio:.2f}" if ratio else "", round(sync), round(parallel)]
        print(
            f"{env_id:22}{ours:9,.0f} steps/s; all tasks {sync:9,.0f}, async {parallel:9,.0f}"
            + (f"   {theirs[0]:9,.0f} {package}, ratio {ratio:.2f}" if theirs else "")
        )
    with open(args.output, "w", newline="") as file:
        writer = csv.writer(file)
        names = "env_id task steps_per_second package package_steps_per_second ratio all_tasks all_tasks_async"
        writer.writerow(names.split())
        writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
