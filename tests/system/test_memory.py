"""How much memory there is: the machine's, a control group's, the device's."""

from __future__ import annotations

import mlx.core as mx
import pytest

from dspark_mlx.system.memory import device_memory, linux_memory

MB = 1 << 20
MEMINFO = "MemTotal:       2048 kB\nMemFree:  5 kB\nMemAvailable:   1024 kB\nHugePages_Total:   0\n"


@pytest.fixture
def machine(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    return tmp_path


def group(root, place, **files):
    folder = root / "sys/fs/cgroup" / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(f"{text}\n")


def test_what_is_available_is_free(machine):
    """MemFree, which leaves out what the machine would give back."""
    found = linux_memory(machine)
    assert (found.total, found.free) == (2 * MB, MB)
    assert linux_memory(machine / "nowhere") is None


@pytest.mark.parametrize("place", ["", "app/inner"])
def test_a_container_has_its_limit(machine, place):
    """A container of 1 MB that takes the machine's 2; a group that the container sees as its root;
    cached files that count as used."""
    (machine / "proc/self/cgroup").write_text("0::/app/inner\n")
    group(machine, place, max=MB, current=MB // 2, stat=f"file 9\ninactive_file {MB // 4}")
    found = linux_memory(machine)
    assert (found.total, found.free) == (MB, 3 * MB // 4) and "cgroup" in found.name


def test_a_parent_may_be_narrower(machine):
    """Only the own group's limit is read; `max` read as a number."""
    (machine / "proc/self/cgroup").write_text("0::/app/inner\n")
    group(machine, "app/inner", max="max", current=MB // 2, stat="file 0")
    group(machine, "app", max=MB, current=MB, stat="file 0")
    assert linux_memory(machine).free == 0


def test_the_first_version_of_groups(machine):
    """Its limit without a limit, which is larger than any machine; other controllers' groups."""
    (machine / "proc/self/cgroup").write_text("9:cpuset:/x\n4:memory,hugetlb:/app\n0::/\n")
    files = {"usage_in_bytes": 1, "stat": "total_inactive_file 0"}
    group(machine, "memory/app", limit_in_bytes=9223372036854771712, **files)
    assert linux_memory(machine).total == 2 * MB
    group(machine, "memory", limit_in_bytes=MB, **files)
    assert linux_memory(machine).free == MB - 1


def test_files_that_are_not_for_this_process_say_nothing(machine):
    """A sandbox without these files, or a group that was removed, that ends every request."""
    (machine / "proc/self/cgroup").write_text("0::/app\n")
    group(machine, "app", max=MB)
    (machine / "sys/fs/cgroup/app/memory.current").mkdir()
    group(machine, "", max="", current="", stat="file 0")
    assert linux_memory(machine).total == 2 * MB
    (machine / "proc/meminfo").unlink()
    assert linux_memory(machine) is None


def test_the_device_has_some():
    found = device_memory()
    assert 0 < found.free <= found.total and found.name


def test_a_gpu_is_asked_for_its_memory(monkeypatch):
    """A Mac's working set; on CUDA what other processes left."""
    info = {"max_recommended_working_set_size": 5 * MB}
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: info)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 2 * MB)
    monkeypatch.setattr(mx, "get_cache_memory", lambda: 0)
    found = device_memory()
    assert (found.total, found.free) == (5 * MB, 3 * MB) and "working set" in found.name
    info.clear()
    info.update(total_memory=8 * MB, free_memory=MB)
    assert device_memory().free == MB
