"""The README's pictures.

python benchmark/picture.py qmp             # five minutes; writes benchmark/results/qmp.png
python benchmark/picture.py environments    # writes benchmark/results/environments.png
"""

import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import matplotlib
import numpy as np
import tyro
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from matplotlib.collections import LineCollection
from run import ROOT

RESULTS = ROOT / "benchmark" / "results"
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import envs  # noqa: E402
import qmp_sac  # noqa: E402
from envs.pointreach import COLORS, GOALS, RADIUS, SPARSE, TASKS  # noqa: E402

MISLEADING = TASKS[1:]  # the tasks without the one that helps
STEPS = 8_000  # of each task, in training
EPISODE = 50
PANELS = (  # title, tasks, flags
    ("(a) without QMP", TASKS, "--env-id PointReach-v0 --no-qmp"),
    ("(b) QMP, three policies mislead", MISLEADING, "--env-id picture:make_misleading"),
    ("(c) QMP, a fourth policy helps", TASKS, "--env-id PointReach-v0"),
)
FRAMES = {  # task shown, steps before the picture
    "PointReach-v0": (0, 12),
    "MultistageReacher-v0": (0, 15),
    "Maze-v0": (0, 60),
    "Walker2dMT4-v0": (3, 8),
    "KitchenMT10-v0": (0, 5),
    "MetaWorldCDS-v0": (2, 20),
    "MetaWorldMT10-v3": (2, 20),
}


def make_misleading(seed: int, vectorization: str, render_mode: str | None) -> VectorEnv:
    """PointReach without the policy that helps, for `--env-id picture:make_misleading`."""
    thunks = [lambda i=i: gym.make("qmp/PointReach-v0", task=i, tasks=MISLEADING) for i in range(len(MISLEADING))]
    vec = SyncVectorEnv(thunks, autoreset_mode=AutoresetMode.SAME_STEP)
    vec.metadata = {**vec.metadata, "tasks": MISLEADING}
    return vec


class Recorder(qmp_sac.Mixture):
    """The mixture that acts in training, which keeps what the sparse task, the last one, does."""

    steps: list[tuple[float, float, int]] = []  # x, y, acting policy

    def act(self, obs: np.ndarray, episode_lengths: np.ndarray) -> np.ndarray:
        actions = super().act(obs, episode_lengths)
        if not self.mean_actions:  # it is not an evaluation
            self.steps.append((*obs[-1], int(self.policies[-1])))
        return actions


def collect(flags: str, n_tasks: int, seed: int) -> np.ndarray:
    """Train; returns x, y and the acting policy in the sparse task's episodes of training, [episodes, EPISODE, 3]."""
    Recorder.steps = []
    with tempfile.TemporaryDirectory() as folder:
        steps = f"--total-timesteps {STEPS * n_tasks} --learning-starts {STEPS // 20 * n_tasks}"
        once = f"--eval-frequency {STEPS * n_tasks} --checkpoint-frequency {STEPS * n_tasks}"
        qmp_sac.main(f"{flags} --seed {seed} --no-cuda {steps} {once} --run-dir {folder}/run".split())
    return np.array(Recorder.steps).reshape(-1, EPISODE, 3)


def draw(square, below, tasks: tuple[str, ...], episodes: np.ndarray) -> None:
    """Every step in the colour of the policy that acted, on the square; below it each policy's share over time."""
    colors = {name: np.array(COLORS[name]) / 255 for name in tasks}
    square.add_patch(plt.Circle(GOALS[SPARSE], RADIUS, color=colors[SPARSE], alpha=0.25, linewidth=0))
    for name in tasks:
        if name != SPARSE:
            square.add_patch(plt.Circle(GOALS[name], 0.05, color=colors[name], zorder=3))
    lines = np.stack([episodes[:, :-1, :2], episodes[:, 1:, :2]], axis=2).reshape(-1, 2, 2)
    policies = episodes[:, :-1, 2].astype(int)
    palette = np.array(list(colors.values()))
    square.add_collection(LineCollection(lines, colors=palette[policies.ravel()], linewidths=0.6, alpha=0.6))
    square.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[], yticks=[])
    shares = [(policies == policy).mean(1) for policy in range(len(tasks))]
    smooth = [np.convolve(share, np.ones(8) / 8, "valid") for share in shares]
    below.stackplot(np.arange(len(smooth[0])) + 4, smooth, colors=palette)
    below.set(xlim=(0, len(episodes)), ylim=(0, 1), yticks=[], xlabel="episodes of training")


def draw_qmp(output: Path = RESULTS / "qmp.png", seed: int = 1) -> None:
    """QMP at work on PointReach: the sparse task's data alone, with policies that mislead, and with one that helps."""
    qmp_sac.Mixture = Recorder
    figure, axes = plt.subplots(2, 3, figsize=(10, 4.9), layout="constrained", height_ratios=(5, 1))
    figure.suptitle(f"PointReach-v0: the task {SPARSE} in training")
    for (title, tasks, flags), (square, below) in zip(PANELS, axes.T, strict=True):
        episodes = collect(flags, len(tasks), seed)
        draw(square, below, tasks, episodes)
        reached = np.linalg.norm(episodes[..., :2] - GOALS[SPARSE], axis=-1) < RADIUS
        print(f"{title}: at the sparse goal in {reached.any(1).sum()} of {len(episodes)} episodes")
        square.set_title(title)
    axes[1, 0].set_ylabel("who acts", rotation=0, ha="right", va="center")
    handles = [plt.Line2D([], [], color=np.array(COLORS[name]) / 255, linewidth=3, label=name) for name in TASKS]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(TASKS), fontsize="small", frameon=False)
    figure.savefig(output, dpi=110)
    print(output)


def draw_environments(output: Path = RESULTS / "environments.png") -> None:
    """A frame of every environment, after some random steps, with the name of the environment and of the task."""
    envs.choose_opengl()
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    for square, (env_id, (task, steps)) in zip(axes.flat, FRAMES.items(), strict=False):
        env = gym.make(f"qmp/{env_id}", task=task, render_mode="rgb_array", disable_env_checker=True)
        env.reset(seed=1)
        env.action_space.seed(1)
        for _ in range(steps):
            action = env.action_space.sample()
            env.step(np.ones_like(action) if env_id == "PointReach-v0" else action)
        square.imshow(env.render(), aspect="auto")
        square.set_title(f"{env_id}: {envs.TASKS[env_id][task]}", fontsize="small")
        env.close()
    for square in axes.flat:
        square.set_axis_off()
    figure.savefig(output, dpi=100, pil_kwargs={"optimize": True})
    print(output)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"qmp": draw_qmp, "environments": draw_environments})
