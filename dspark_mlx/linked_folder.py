"""A checkpoint folder as mlx-lm can read it, whatever its name and those of its weights."""

from __future__ import annotations

import contextlib
import glob
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .checkpoint import weight_files


@contextlib.contextmanager
def readable_folder(folder: Path) -> Iterator[Path]:
    """The folder, or for a while one of links to its files.

    mlx-lm looks for weights by the pattern FOLDER/model*.safetensors. It finds none where FOLDER
    has characters of patterns in its own name, or where the weights are called otherwise. What was
    opened in the block stays readable after it.

    Args:
        folder: of a checkpoint.

    Raises:
        InputError: see `weight_files`.
    """
    weights = weight_files(folder)
    named = all(path.name.startswith("model") for path in weights)
    if named and glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="dspark-links-") as scratch:
        links = Path(scratch)
        for path in folder.iterdir():
            if path.suffix != ".safetensors":
                (links / path.name).symlink_to(path.absolute())
        for number, path in enumerate(weights):
            (links / f"model-{number:05d}.safetensors").symlink_to(path.absolute())
        yield links
