"""Tensors as large as the memory of the machine, of a container or of a GPU allows, and how freed memory is kept."""

import ctypes
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import torch
from torch import Tensor

# Of a group of processes, in versions 2 and 1 of cgroups: its limit, its use, and the part of it that is cache.
CGROUP_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def allocate(shapes: Sequence[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    """Uninitialised float32 tensors of these shapes, for replay.

    The operating system hands out memory when it is written to, and kills who takes too much; so it is asked first.

    Raises:
        gymnasium.error.Error: they do not fit into what is free now.
    """
    needed = 4 * sum(math.prod(shape) for shape in shapes)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    try:
        if needed <= free:
            return [torch.empty(shape, device=device) for shape in shapes]
    except RuntimeError:  # another limit, such as that of `ulimit -v`
        pass
    found = f"{free / 2**30:.1f} GiB of memory are free" if needed > free else "the system grants less"
    raise gym.error.Error(f"replay needs {needed / 2**30:.1f} GiB, but {found}; choose a smaller --buffer-size")


def keep_freed_memory() -> None:
    """Have glibc keep freed memory, which is faster than to ask the system again. Without glibc nothing happens."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still use: of the machine's memory and of its cgroups', found below `root`."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        free.append(1024 * _entries(root / "proc/meminfo")["MemAvailable:"])
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, KeyError):  # not Linux
        return min(free)
    groups = [line.split(":", 2) for line in lines]
    for (_, controllers, path), (controller, limit, usage, cache) in itertools.product(groups, CGROUP_FILES):
        base = root / "sys/fs/cgroup" / controller
        group = base / path.lstrip("/")
        # A container may see its own group as `base`, whatever the path says.
        folders = [folder for folder in (group, *group.parents) if folder.is_relative_to(base)]
        for folder in folders if controller in controllers.split(",") else ():
            try:
                used = int((folder / usage).read_text()) - _entries(folder / "memory.stat")[cache]
                free.append(int((folder / limit).read_text()) - used)
            except (OSError, KeyError, ValueError):  # no such group, or its limit is "max"
                pass
    return max(min(free), 0)


def _entries(path: Path) -> dict[str, int]:
    """Names and numbers of a file with one of each a line."""
    return {name: int(number) for name, number, *_ in map(str.split, path.read_text().splitlines())}
