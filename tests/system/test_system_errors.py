"""What a user is told of the operating system's errors."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from dspark_mlx import InputError
from dspark_mlx.system.system_errors import writing


def test_a_full_disk_behind_a_link_is_the_one_that_is_named(tmp_path, monkeypatch):
    """A disk with 41 GB free that is called full, since the cache folder is a link to another."""
    disk, link = tmp_path / "disk", tmp_path / "home" / "cache"
    disk.mkdir()
    link.parent.mkdir()
    link.symlink_to(disk)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) in (disk, Path("/")))
    full = pytest.raises(InputError, match=f"no space left on the disk at {disk} ")
    with full, writing(link / "new" / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
