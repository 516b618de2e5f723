"""Draw QMP at work on PointReach: who acts for the sparse task, early and late in training, and the mixture.

python benchmark/picture.py    # a few minutes; writes benchmark/results/qmp.png
"""

import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from plot import draw_mixture, read, read_mixture  # noqa: E402

import envs  # noqa: E402
import qmp_sac  # noqa: E402
from envs import pointreach  # noqa: E402

EPISODES = 12
STAGES = {"early": 8_000, "late": 40_000}  # steps
FREQUENCY = 4_000  # of evaluations and checkpoints: with it a short run is the beginning of a long one


def collect(agent: qmp_sac.Agent, args: qmp_sac.Args) -> list[np.ndarray]:
    """Collect episodes of the last task with the mixture, as training does. Returns (policy, x, y) rows for each."""
    vec = envs.make_vec(args.env_id, seed=0)
    mixture = qmp_sac.Mixture(agent, args, torch.Generator().manual_seed(0))
    sparse = vec.unwrapped.envs[-1].unwrapped
    obs, _ = vec.reset()
    episodes, episodic_length = [], np.zeros(vec.num_envs)
    while len(episodes) < EPISODES:
        actions = mixture(obs, episodic_length)
        vec.unwrapped.set_attr("acting_policy", mixture.policies.tolist())
        trajectory = sparse.trajectory
        obs, _, _, truncations, _ = vec.step(actions.numpy())
        episodic_length = np.where(truncations, 0, episodic_length + 1)
        if truncations[-1]:
            episodes.append(np.array(trajectory))
    return episodes


def draw_episodes(axes, episodes: list[np.ndarray]) -> None:
    """The square, the goals, and every step in the colour of the policy that took it."""
    colors = np.array(pointreach.COLORS) / 255
    for i, name in enumerate(pointreach.TASKS):
        goal, width = pointreach.GOALS[name], 3 if name == pointreach.SPARSE else 1
        axes.add_patch(plt.Circle(goal, pointreach.radius(name), fill=False, color=colors[i], linewidth=width))
        axes.text(*goal, i, ha="center", va="center", color=colors[i])
    for episode in episodes:
        for a, b in zip(episode, episode[1:], strict=False):
            axes.plot([a[1], b[1]], [a[2], b[2]], color=colors[int(b[0])], linewidth=1)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])


def main(output: Path = ROOT / "benchmark" / "results" / "qmp.png") -> None:
    """Train up to each stage, collect, draw."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.6), layout="constrained")
    tasks = list(envs.TASKS["PointReach-v0"])
    with tempfile.TemporaryDirectory() as folder:
        for (stage, steps), panel in zip(STAGES.items(), axes, strict=False):
            run_dir = Path(folder) / stage
            frequencies = {"eval_frequency": FREQUENCY, "checkpoint_frequency": FREQUENCY}
            args = qmp_sac.Args(total_timesteps=steps, run_dir=str(run_dir), **frequencies)
            draw_episodes(panel, collect(qmp_sac.train(args), args))
            panel.set_title(f"Task 3 collects data, {stage} ({steps:,} steps)")
        ends, mixture = read_mixture(read(run_dir / "mixture.csv"))
    weights = np.diff(ends, prepend=args.learning_starts)  # the random first steps do not count
    draw_mixture(axes[-1], np.average(mixture, 0, weights), tasks)
    axes[-1].set_title("Who acted for each task, over the whole run")
    colors = np.array(pointreach.COLORS[: len(tasks)]) / 255
    lines = [plt.Line2D([], [], color=color, label=f"policy {i}") for i, color in enumerate(colors)]
    axes[0].legend(handles=lines, loc="lower right", fontsize="small")
    figure.savefig(output, dpi=90)
    print(output)


if __name__ == "__main__":
    tyro.cli(main)
