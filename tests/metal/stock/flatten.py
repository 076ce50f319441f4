"""MLX's kernel headers with their own includes written out, so that all of it is translated."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def flattened(names: Iterable[str], folders: tuple[Path, ...]) -> str:
    """The headers' text with what they include, each once; the first folder that has one wins."""
    seen: set[str] = set()
    return "".join(_flat(name, folders, seen) for name in names)


def _flat(name: str, folders: tuple[Path, ...], seen: set[str]) -> str:
    if name in seen:
        return ""
    seen.add(name)
    path = next(folder / name for folder in folders if (folder / name).exists())
    text = path.read_text().replace("#pragma once", "")
    include = r'^#include "(mlx/[^"]+)"'
    return re.sub(include, lambda found: _flat(found.group(1), folders, seen), text, flags=re.M)
