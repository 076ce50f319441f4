"""How much memory MLX may take: a device's, or the machine's within the limits of its groups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import mlx.core as mx

_ROOT = Path("/")
_FILES = {
    True: ("memory.max", "memory.current", "inactive_file"),
    False: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of a control group: its limit, what is used of it, and the part of that which can be dropped."""


@dataclass(frozen=True)
class Memory:
    """Bytes that MLX may use on its default device.

    Attributes:
        total: bytes that there are in all.
        free: bytes that may still be taken; negative where more is used than may be.
        name: whose memory it is, for messages.
    """

    total: int
    free: int
    name: str


def device_memory() -> Memory:
    """A Mac's recommended working set, a GPU's memory, or on a CPU the machine's memory now.

    What MLX holds for its next arrays counts as free.
    """
    info = mx.device_info() if mx.default_device().type != mx.DeviceType.cpu else {}
    working_set = info.get("max_recommended_working_set_size")
    total = int(working_set or info.get("total_memory") or 0)
    if total:
        name = "the device's recommended working set" if working_set else "the GPU's memory"
        free = total - mx.get_active_memory()
        if "free_memory" in info:  # what other processes left of it
            free = min(free, int(info["free_memory"]) + mx.get_cache_memory())
        return Memory(total, free, name)
    linux = linux_memory()
    if linux is not None:
        return Memory(linux.total, linux.free + mx.get_cache_memory(), linux.name)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Memory(total, total - mx.get_active_memory(), "the machine's memory")


def linux_memory(root: Path = _ROOT) -> Memory | None:
    """The machine's memory, or what a control group of this process leaves of it; None elsewhere.

    Args:
        root: the folder that holds proc and sys.
    """
    found = _numbers(root / "proc/meminfo")
    if "MemAvailable" not in found:
        return None
    memory = Memory(found["MemTotal"], found["MemAvailable"], "the machine's memory")
    for limit, used in _limits(root):
        if limit < memory.total:
            name = "this process's memory limit (cgroup)"
            memory = Memory(limit, min(memory.free, limit - used), name)
    return memory


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limits of the control groups that this process is in, and the bytes that are used of each."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, name = line.split(":", 2)
        unified = not controllers
        if not unified and "memory" not in controllers.split(","):
            continue
        folder = root / "sys/fs/cgroup" / ("" if unified else "memory")
        limit, used, dropped = _FILES[unified]
        # A container may see its own group as the root, under the name that the host knows.
        for group in (PurePosixPath(name), *PurePosixPath(name).parents):
            place = folder / str(group).lstrip("/")
            bounds, taken = (_text(place / each).strip() for each in (limit, used))
            if bounds.isdecimal() and taken.isdecimal():
                inactive = _numbers(place / "memory.stat").get(dropped, 0)
                yield int(bounds), int(taken) - inactive


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file as names and bytes."""
    found = {}
    for line in _text(path).splitlines():
        name, number, *unit = line.replace(":", " ").split()
        found[name] = int(number) * (1024 if unit else 1)
    return found


def _text(path: Path) -> str:
    """The content of a file of the system; "" where it is not there, or not for this process."""
    try:
        return path.read_text()
    except OSError:
        return ""
