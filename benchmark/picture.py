"""The README's pictures.

python benchmark/picture.py qmp             # trains for five minutes; results/qmp.png
python benchmark/picture.py environments    # results/environments.png
python benchmark/picture.py rollout RUN     # results/rollout.webp: a trained run, who acts
"""

import importlib
import sys
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.collections import LineCollection
from PIL import Image
from run import ROOT

RESULTS = ROOT / "benchmark" / "results"
sys.path.insert(0, str(ROOT))
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

import envs  # noqa: E402
import qmp_sac  # noqa: E402
from envs import pointreach  # noqa: E402
from envs.pointreach import COLORS, GOALS, RADIUS, SPARSE, TASKS  # noqa: E402

MISLEADING = TASKS[1:]  # the tasks without the one that helps
STEPS = 8_000  # of each task, in training
EPISODE = 50
SMOOTHING = 8  # episodes
PANELS = (  # title, tasks, flags
    ("(a) without QMP", TASKS, "--env-id PointReach-v0 --no-qmp"),
    ("(b) QMP, three policies mislead", MISLEADING, "--env-id picture:make_misleading"),
    ("(c) QMP, a fourth policy helps", TASKS, "--env-id PointReach-v0"),
)
FRAMES = {  # task shown, random steps before the picture
    "PointReach-v0": (0, 12),
    "MultistageReacher-v0": (0, 15),
    "Maze-v0": (0, 60),
    "Walker2dMT4-v0": (3, 8),
    "KitchenMT10-v0": (0, 5),
    "MetaWorldCDS-v0": (2, 20),
    "MetaWorldMT10-v3": (2, 20),
}
MOVIE_BYTES = 2_000_000
MOVIE_WIDTH = 830  # pixels, as GitHub shows it


def make_misleading(render_mode: str | None = None) -> dict:
    """PointReach without the policy that helps, for `--env-id picture:make_misleading`."""
    return pointreach.make_tasks(render_mode, MISLEADING)


class Recorder(qmp_sac.Mixture):
    """The mixture that acts in training, which keeps what the sparse task, the last one, does."""

    steps: list[tuple[float, float, int]] = []  # x, y, acting policy

    def act(self, obs: np.ndarray, episode_lengths: np.ndarray) -> np.ndarray:
        actions = super().act(obs, episode_lengths)
        if not self.mean_actions:  # it is not an evaluation
            x, y = obs[-1]
            self.steps.append((x, y, int(self.policies[-1])))
        return actions


def collect(flags: str, n_tasks: int, seed: int) -> np.ndarray:
    """Train. Returns x, y and policy of the sparse task's steps, [episodes, EPISODE, 3]."""
    Recorder.steps = []
    total = STEPS * n_tasks
    flags += f" --seed {seed} --no-cuda --total-timesteps {total} --learning-starts {total // 20}"
    flags += f" --eval-frequency {total} --checkpoint-frequency {total}"
    with tempfile.TemporaryDirectory() as folder:
        qmp_sac.main([*flags.split(), "--run-dir", f"{folder}/run"])
    return np.array(Recorder.steps).reshape(-1, EPISODE, 3)


def draw_ways(square, tasks: tuple[str, ...], episodes: np.ndarray) -> None:
    """Every step on the square, in the colour of the policy that acted."""
    colors = {name: np.array(COLORS[name]) / 255 for name in tasks}
    disc = {"color": colors[SPARSE], "alpha": 0.25, "linewidth": 0}
    square.add_patch(plt.Circle(GOALS[SPARSE], RADIUS, **disc))
    for name in tasks:
        if name != SPARSE:
            square.add_patch(plt.Circle(GOALS[name], 0.05, color=colors[name], zorder=3))
    starts = episodes[:, :-1, :2]
    ends = episodes[:, 1:, :2]
    lines = np.stack([starts, ends], axis=2).reshape(-1, 2, 2)
    policies = episodes[:, :-1, 2].astype(int).ravel()
    palette = np.array(list(colors.values()))
    square.add_collection(LineCollection(lines, colors=palette[policies], lw=0.6, alpha=0.6))
    square.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
    square.set(xticks=[], yticks=[])


def draw_shares(axes, tasks: tuple[str, ...], episodes: np.ndarray) -> None:
    """Each policy's share of the steps over the episodes."""
    policies = episodes[..., 2]
    window = np.ones(SMOOTHING) / SMOOTHING
    shares = []
    for policy in range(len(tasks)):
        share = (policies == policy).mean(1)
        shares.append(np.convolve(share, window, "valid"))
    colors = [np.array(COLORS[name]) / 255 for name in tasks]
    axes.stackplot(np.arange(len(shares[0])) + SMOOTHING / 2, shares, colors=colors)
    axes.set(xlim=(0, len(episodes)), ylim=(0, 1), yticks=[])
    axes.set_xlabel("episodes of training")


def draw_qmp(output: Path = RESULTS / "qmp.png", seed: int = 1) -> None:
    """The sparse task's training: alone, with policies that mislead, and with one that helps."""
    qmp_sac.Mixture = Recorder
    shape = {"figsize": (10, 4.9), "height_ratios": (5, 1)}
    figure, axes = plt.subplots(2, 3, layout="constrained", **shape)
    figure.suptitle(f"PointReach-v0: the task {SPARSE} in training")
    for (title, tasks, flags), (square, below) in zip(PANELS, axes.T, strict=True):
        episodes = collect(flags, len(tasks), seed)
        draw_ways(square, tasks, episodes)
        draw_shares(below, tasks, episodes)
        distances = np.linalg.norm(episodes[..., :2] - GOALS[SPARSE], axis=-1)
        reached = (distances < RADIUS).any(1).sum()
        print(f"{title}: at the sparse goal in {reached} of {len(episodes)} episodes")
        square.set_title(title)
    axes[1, 0].set_ylabel("who acts", rotation=0, ha="right", va="center")
    handles = []
    for name in TASKS:
        color = np.array(COLORS[name]) / 255
        handles.append(plt.Line2D([], [], color=color, linewidth=3, label=name))
    legend = {"loc": "outside lower center", "fontsize": "small", "frameon": False}
    figure.legend(handles=handles, ncols=len(TASKS), **legend)
    figure.savefig(output, dpi=110)
    print(output)


def draw_environments(output: Path = RESULTS / "environments.png") -> None:
    """A frame of every environment, after some random steps, with the names of a task."""
    envs.choose_opengl()
    figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), layout="constrained")
    for square in axes.flat:
        square.set_axis_off()
    for square, env_id in zip(axes.flat, FRAMES, strict=False):
        task, steps = FRAMES[env_id]
        tasks = envs.make_tasks(env_id, "rgb_array")
        name = list(tasks)[task]
        env = tasks[name]()
        env.reset(seed=1)
        env.action_space.seed(1)
        for _ in range(steps):
            action = env.action_space.sample()
            if env_id == "PointReach-v0":
                action = np.ones_like(action)
            env.step(action)
        square.imshow(env.render(), aspect="auto")
        square.set_title(f"{env_id}: {name}", fontsize="small")
        env.close()
    figure.savefig(output, dpi=100, pil_kwargs={"optimize": True})
    print(output)


def film(run: Path, seed: int, path: Path) -> None:
    """One episode of every task by the mixtures of a run, as a video."""
    checkpoint = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    script = importlib.import_module(checkpoint["script"])
    args = script.Args(**checkpoint["args"])
    vec = envs.make_vec(args.env_id, "sync", "rgb_array")
    O = vec.single_observation_space.shape[0]
    A = vec.single_action_space.shape[0]
    agent = script.Agent(vec.num_envs, O, A, args)
    agent.load_state_dict(checkpoint["agent"])
    mixture = script.Mixture(agent, args, use_switch=True, mean_actions=True)
    rows = envs.evaluate(vec, mixture, 1, [seed], path)
    print(rows.to_string(index=False))
    vec.close()


def draw_rollout(
    run: tyro.conf.Positional[Path],
    output: Path = RESULTS / "rollout.webp",
    seed: int = 1,
    every: int = 2,
) -> None:
    """A moving picture of a run's mixtures, at most 2 MB, with every second frame."""
    from moviepy import VideoFileClip  # slow to import

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rollout.mp4")
        film(run, seed, path)
        with VideoFileClip(str(path)) as clip:
            milliseconds = 1000 * every / clip.fps
            frames = [Image.fromarray(frame) for frame in clip.iter_frames()][::every]
    width = min(MOVIE_WIDTH, frames[0].width)
    height = round(frames[0].height * width / frames[0].width)
    frames = [frame.resize((width, height), Image.Resampling.LANCZOS) for frame in frames]
    for quality in range(80, 0, -10):
        options = {"quality": quality, "duration": round(milliseconds), "loop": 0, "method": 4}
        frames[0].save(output, save_all=True, append_images=frames[1:], **options)
        size = output.stat().st_size
        if size <= MOVIE_BYTES:
            break
    print(f"{output}: {len(frames)} frames, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    pictures = {"qmp": draw_qmp, "environments": draw_environments, "rollout": draw_rollout}
    tyro.extras.subcommand_cli_from_dict(pictures)
