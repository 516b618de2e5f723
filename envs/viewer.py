"""Drawing of the MuJoCo environments that are not built on a class of Gymnasium's."""

import gymnasium as gym
from gymnasium.envs.mujoco.mujoco_rendering import OffScreenViewer


class ViewedEnv(gym.Env):
    """An environment with a MuJoCo `model` and `data` of its own, whose viewer is made when it is first needed."""

    viewer: OffScreenViewer | None = None

    def look(self, width: int, height: int, **camera: float | tuple[float, ...]) -> OffScreenViewer:
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
