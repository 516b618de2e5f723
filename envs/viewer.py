"""What the MuJoCo environments share that are not built on a class of Gymnasium's: state, copies, pictures, files."""

from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import mujoco
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer

# Found, not imported: importing the package prints a notice and replaces some of Gymnasium's own environments.
ROBOTICS = Path(find_spec("gymnasium_robotics").origin).parent / "envs"


class ViewedEnv(gym.Env):
    """An environment with a MuJoCo `model` and `data` of its own, whose viewer is made when it is first needed.

    Copies, by `copy.deepcopy` or `pickle`, go on from the same state; they make a viewer of their own.
    """

    viewer: OffScreenViewer | None = None

    def __init__(self, model: mujoco.MjModel, render_mode: str | None):
        self.model, self.data, self.render_mode = model, mujoco.MjData(model), render_mode
        self._keep_arrays()

    def _keep_arrays(self) -> None:
        """Keep those arrays of `data` that steps read, which are quicker to reach so."""
        data = self.data
        self.qpos, self.qvel, self.qacc, self.ctrl, self.xpos = data.qpos, data.qvel, data.qacc, data.ctrl, data.xpos

    def __getstate__(self) -> dict:
        return {**self.__dict__, "viewer": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._keep_arrays()  # those in `state` no longer belong to the simulation

    def prepare_viewer(self, width: int, height: int, **camera: float | tuple[float, ...]) -> OffScreenViewer:
        """The viewer, ready to draw width x height pixels; `camera` sets its lookat, distance, azimuth, elevation."""
        if self.viewer is None:
            self.viewer = OffScreenViewer(self.model, self.data, width, height)
        for name, value in camera.items():
            setattr(self.viewer.cam, name, value)
        self.viewer.make_context_current()  # another environment's may be
        return self.viewer

    def close(self) -> None:
        """Free the viewer, if there is one."""
        if self.viewer is not None:
            self.viewer.make_context_current()  # what is freed belongs to whichever context is current
            self.viewer.close()
            self.viewer = None
