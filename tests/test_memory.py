"""Replay gets as much memory as there is, and more is refused before any of it is used."""

import os

import gymnasium as gym
import pytest
import torch

from envs import memory

CPU = torch.device("cpu")
MEMINFO = "MemTotal: 2000 kB\nMemAvailable: 1000 kB\nHugePages_Total: 0\n"
CACHE = "anon 7\ninactive_file 100\ntotal_inactive_file 200\n"


def group(folder, version, limit, used):
    """Files of a group of processes."""
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    return {f"{folder}/{name}": f"{value}\n" for name, value in zip(names, (limit, used), strict=True)} | {
        f"{folder}/memory.stat": CACHE
    }


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/memory"
SYSTEMS = {
    "no group": ("", {}, 1_024_000),
    "no limit": ("0::/job", group(f"{V2}/job", 2, "max", 50_000), 1_024_000),
    "version 2": ("0::/job", group(f"{V2}/job", 2, 90_000, 50_000), 40_100),
    "version 1": ("3:cpu:/\n4:memory:/job", group(f"{V1}/job", 1, 90_000, 50_000), 40_200),
    "both": ("4:cpu,memory:/a\n0::/b", group(f"{V1}/a", 1, 70_000, 0) | group(f"{V2}/b", 2, 60_000, 0), 60_100),
    "a limit above": (
        "0::/slice/job",
        group(f"{V2}/slice/job", 2, "max", 0) | group(f"{V2}/slice", 2, 9_000, 0),
        9_100,
    ),
    "a container's own view": ("4:memory:/docker/12", group(V1, 1, 90_000, 90_000), 200),
    "too much already": ("0::/", group(V2, 2, 1_000, 5_000), 0),
    "more than the machine has": ("0::/", group(V2, 2, 2**62, 0), 1_024_000),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_free_memory(tmp_path, name):
    groups, files, free = SYSTEMS[name]
    for path, text in (files | {"proc/meminfo": MEMINFO, "proc/self/cgroup": groups}).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert memory.free_memory(tmp_path) == free


def test_free_memory_where_nothing_tells_it(tmp_path):
    """As on macOS: what the machine has."""
    assert memory.free_memory(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.free_memory() <= memory.free_memory(tmp_path)


def test_allocation(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 4 * (24 + 6))
    tensors = memory.allocate([(2, 3, 4), (2, 3)], CPU)
    assert [(x.shape, x.dtype) for x in tensors] == [((2, 3, 4), torch.float32), ((2, 3), torch.float32)]
    monkeypatch.setattr(memory, "free_memory", lambda: 2**30)
    words = "replay needs 3.0 GiB, but 1.0 GiB of memory are free; choose a smaller --buffer-size"
    with pytest.raises(gym.error.Error, match=words):
        memory.allocate([(2**28, 2), (2**28,)], CPU)

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as under `ulimit -v`

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(gym.error.Error, match="replay needs 0.8 GiB, but the system grants less; choose a smaller"):
        memory.allocate([(2**27,), (2**26,)], CPU)
