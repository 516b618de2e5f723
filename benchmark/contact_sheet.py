"""One picture with a frame of every environment, after some random steps.

python benchmark/contact_sheet.py    # writes benchmark/results/environments.png
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import tyro
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import envs  # noqa: E402

FRAMES = {  # task shown, steps before the picture
    "PointReach-v0": (3, 12),
    "MultistageReacher-v0": (0, 15),
    "Maze-v0": (0, 60),
    "MetaWorldCDS-v0": (2, 20),
    "MetaWorldMT10-v3": (2, 20),
    "Walker2dMT4-v0": (3, 8),
    "KitchenMT10-v0": (0, 5),
}
SIZE, COLUMNS = 300, 4


def main(output: Path = ROOT / "benchmark" / "results" / "environments.png") -> None:
    """Draw every frame, with the name of the environment and of the task below."""
    envs.choose_opengl()
    rows = -(-len(FRAMES) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * SIZE, rows * (SIZE + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for k, (env_id, (task, steps)) in enumerate(FRAMES.items()):
        env = gym.make(f"qmp/{env_id}", task=task, render_mode="rgb_array", disable_env_checker=True)
        env.reset(seed=1)
        env.action_space.seed(1)
        for _ in range(steps):
            env.step(
                np.ones_like(env.action_space.sample()) if env_id == "PointReach-v0" else env.action_space.sample()
            )
        x, y = k % COLUMNS * SIZE, k // COLUMNS * (SIZE + 24)
        sheet.paste(Image.fromarray(env.render()).resize((SIZE - 6, SIZE - 6)), (x + 3, y + 3))
        draw.text((x + 6, y + SIZE + 2), f"{env_id}: {envs.TASKS[env_id][task]}", fill="black")
        env.close()
    sheet.save(output, optimize=True)
    print(output)


if __name__ == "__main__":
    tyro.cli(main)
