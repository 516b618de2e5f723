"""Steps per second of environments: one task, the package's it builds on, all tasks in one and in many processes.

    python benchmark/env_speed.py    # prints a table; writes benchmark/results/env_speed.csv

What is compared takes turns, a block of random steps each; the median of the blocks counts. A single task and the
package's environment run in one process on one core; all tasks with --vectorization async on as many as there are.
"""

import sys
import time
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import numpy as np
import pandas as pd
import tyro
from metaworld.env_dict import ALL_V3_ENVIRONMENTS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import envs  # noqa: E402

gym.register_envs(gymnasium_robotics)


ENVIRONMENTS = tuple(
    name for name in envs.TASKS if name not in ("PointReach2-v0", "PointReach9-v0", "MetaWorldMT25-v3")
)
OUTPUT = ROOT / "benchmark" / "results" / "env_speed.csv"


def package_meta_world(name: str) -> gym.Env:
    """A task as the metaworld package makes it."""
    env = ALL_V3_ENVIRONMENTS[name]()
    env._partially_observable, env._freeze_rand_vec, env._set_task_called = False, False, True
    return env


def package_gym(name: str, **kwargs) -> gym.Env:
    """An environment as Gymnasium makes it."""
    return gym.make(name, disable_env_checker=True, **kwargs)


PACKAGES = {  # our task, the package's environment
    "Walker2dMT4-v0": (0, "Walker2d-v5", lambda: package_gym("Walker2d-v5")),
    "KitchenMT10-v0": (0, "FrankaKitchen-v1", lambda: package_gym("FrankaKitchen-v1", tasks_to_complete=["microwave"])),
    "MetaWorldCDS-v0": (2, "metaworld drawer-open-v3", lambda: package_meta_world("drawer-open-v3")),
    "MetaWorldMT10-v3": (0, "metaworld reach-v3", lambda: package_meta_world("reach-v3")),
}


def block(env: gym.Env | gym.vector.VectorEnv, steps: int) -> float:
    """Take `steps` random steps, with resets where they are due. Returns steps per second, of all tasks together."""
    actions, N = [env.action_space.sample() for _ in range(steps)], getattr(env, "num_envs", 0)
    begin = time.perf_counter()
    for action in actions:
        *_, terminated, truncated, _ = env.step(action)
        if not N and (terminated or truncated):
            env.reset()
    return max(N, 1) * steps / (time.perf_counter() - begin)


def compare(compared: list[gym.Env | gym.vector.VectorEnv], blocks: int, seconds: float) -> np.ndarray:
    """Steps per second in blocks of so many seconds, of environments that are closed then: [blocks, environments]."""
    for env in compared:
        env.reset(seed=0)
        env.action_space.seed(0)
    steps = max(int(block(compared[0], 100) / getattr(compared[0], "num_envs", 1) * seconds), 10)
    speeds = np.array([[block(env, steps) for env in compared] for _ in range(blocks)])
    for env in compared:
        env.close()
    return speeds


def main(
    env_ids: tuple[str, ...] = ENVIRONMENTS, blocks: int = 15, seconds: float = 0.3, output: Path = OUTPUT
) -> None:
    """Measure environments in blocks of about so many seconds, print a table and write it."""
    rows = []
    for env_id in env_ids:
        task, package, make_package = PACKAGES.get(env_id, (0, "", None))
        single = [package_gym(f"qmp/{env_id}", task=task)]
        single += [gym.wrappers.TimeLimit(make_package(), 500)] if package else []
        ours, theirs = (speeds := compare(single, blocks, seconds))[:, 0], speeds[:, -1]
        row = {"env_id": env_id, "task": envs.TASKS[env_id][task], "steps_per_second": np.median(ours)}
        if package:
            row |= {
                "package": package,
                "package_steps_per_second": np.median(theirs),
                "ratio": np.median(ours / theirs),
            }
        vectorized = [envs.make_vec(env_id, 0, vectorization) for vectorization in ("sync", "async")]
        row["all_tasks"], row["all_tasks_async"] = np.median(compare(vectorized, blocks, seconds), axis=0)
        rows.append(row)
        print(f"{env_id}: {row['steps_per_second']:,.0f}", flush=True)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="%.4g", na_rep=""))
    table.to_csv(output, index=False, float_format="%.4g")


if __name__ == "__main__":
    tyro.cli(main)
