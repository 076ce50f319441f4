"""Reading a folder of safetensors, whose shards are all checked before a tensor is used."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from safetensors import SafetensorError, safe_open

from ..errors import InputError
from ..system.files import read_json

INDEX = "model.safetensors.index.json"

_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"(.*-)(\d+)-of-(\d+)\.safetensors")
_LONGEST_SIDE = 2**31 - 1  # MLX counts in int32


@dataclass(frozen=True)
class TensorHeader:
    """One tensor's entry in the header of a safetensors file.

    Attributes:
        path: the file.
        dtype: the type as the format names it: "F32", "BF16", "F8_E4M3".
        shape: the stored shape.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint folder, in order of their names.

    Raises:
        InputError: there is no such folder, or no such file in it; pickled weights are named in
            the message and never read.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise InputError(folder, found, "a checkpoint folder")
    files = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    if not files:
        names = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
        found = f"pickled weights only ({', '.join(names)})" if names else "no weights"
        raise InputError(folder, found, "*.safetensors", "Pickles can run code; none is read.")
    _check_numbering(files)
    return files


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """The header of every tensor of a folder, by name; no tensor is read.

    Raises:
        InputError: a file is cut off or not safetensors, a shard is missing, or a tensor is stored
            twice; or see `weight_files`.
    """
    found: dict[str, TensorHeader] = {}
    for path in weight_files(folder):
        for name, header in read_header(path).items():
            if name in found:
                where = f"{name}, also in {found[name].path.name}"
                raise InputError(path, where, "each tensor once")
            found[name] = header
    _check_index(folder / INDEX, found)
    return found


def read_tensors(folder: Path) -> dict[str, mx.array]:
    """All tensors of a folder, loaded lazily.

    Raises:
        InputError: a tensor has a type that MLX lacks; or see `tensor_headers`.
    """
    tensors: dict[str, mx.array] = {}
    for path in dict.fromkeys(header.path for header in tensor_headers(folder).values()):
        tensors.update(load_arrays(path))
    return tensors


def load_arrays(path: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file that was checked before, loaded lazily.

    Raises:
        InputError: MLX cannot read it.
    """
    try:
        loaded = mx.load(str(path))
    except RuntimeError as error:
        raise InputError(path, f"a file that MLX cannot read ({error})", "another type") from error
    assert isinstance(loaded, dict)
    return loaded


def read_header(path: Path) -> dict[str, TensorHeader]:
    """The header of every tensor of one file, by name; no tensor is read.

    Raises:
        InputError: the file is cut off, not safetensors, or names a tensor twice.
    """
    try:
        # The library checks sizes, offsets and types against one another and the file's length.
        with safe_open(str(path), framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            headers = {
                name: TensorHeader(path, str(one.get_dtype()), tuple(one.get_shape()))
                for name, one in slices.items()
            }
        with path.open("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little"))
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise InputError(path, f"{size} bytes ({error})", "a whole safetensors file") from error
    # The library takes the last of two entries with one name, without an error.
    names = Counter(json.loads(text, object_pairs_hook=lambda pairs: [key for key, _ in pairs]))
    if twice := [name for name, count in names.items() if count > 1]:
        raise InputError(path, f"{twice[0]} twice in the header", "each tensor once")
    for name, header in headers.items():
        if any(side > _LONGEST_SIDE for side in header.shape):
            raise InputError(path, f"{name} of shape {list(header.shape)}", "sides below 2**31")
    return headers


def _check_numbering(files: list[Path]) -> None:
    """Refuse numbered shards with a gap, as an interrupted download leaves them."""
    names = {file.name for file in files}
    for file in files:
        if match := _SHARD.fullmatch(file.name):
            start, part, count = match[1], match[2], int(match[3])
            # Names are built up to the files there are: a file's name may state any count.
            for number in range(1, min(count, len(files) + 1) + 1):
                name = f"{start}{number:0{len(part)}d}-of-{match[3]}.safetensors"
                if name not in names:
                    _refuse_missing(file.parent / name, f"part of {file.name}'s {count}")


def _check_index(path: Path, found: Mapping[str, TensorHeader]) -> None:
    """Refuse a folder that lacks a tensor of its index; the message names the shard."""
    if not path.exists():
        return
    listed = read_json(path).get("weight_map", {})
    if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
        raise InputError(path, f"weight_map {listed!r:.80}", "an object of files by tensor")
    missing = sorted(listed.keys() - found.keys())
    if not missing:
        return
    name, shard = missing[0], path.parent / listed[missing[0]]
    if shard.exists():
        raise InputError(path, f"{len(missing)} tensors in no file, as {name}", f"it in {shard}")
    _refuse_missing(shard, f"{len(missing)} tensors, as {name}")


def _refuse_missing(shard: Path, what: str) -> None:
    raise InputError(shard, "no such file", what, "A download may have been cut off: repeat it.")
