"""MultistageReacher's sparse task among fewer others, to measure how QMP scales on this arm.

    python qmp_sac.py --env-id benchmark.reacher_tasks:make_with_helper \
        --batch-size 32 --learning-starts 20_000 --total-timesteps 240_000

These are the 120,000 steps per task that `MultistageReacher-v0` has in 600,000. With two others use
30_000 and 360_000.
"""

from envs import reacher

SPARSE = "reach-1-2-0-sparse"
HELPER = "reach-1-3-2"  # the same first sub-goal
OTHERS = ("reach-0-1-2", "reach-0-1-3")  # another one


def choose(names, render_mode: str | None = None) -> dict:
    """Some of the tasks of MultistageReacher."""
    tasks = reacher.make_tasks(render_mode)
    return {name: tasks[name] for name in names}


def make_with_helper(render_mode: str | None = None) -> dict:
    """The sparse task and the one that has its first sub-goal."""
    return choose([HELPER, SPARSE], render_mode)


def make_with_two_others(render_mode: str | None = None) -> dict:
    """The sparse task and two that head for another sub-goal first."""
    return choose([*OTHERS, SPARSE], render_mode)
