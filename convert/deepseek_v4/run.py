"""The whole conversion of a DeepSeek V4 checkpoint, which goes on where it was stopped."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from tqdm import tqdm

from ...checkpoint.safetensors import INDEX, read_tensors, tensor_headers
from ...checkpoint.tensor_writer import TensorFile
from ...deepseek_v4.config import checked_args
from ...errors import InputError, shown_bytes
from ...system.files import read_json, write_json
from ...system.memory import device_memory
from ...system.resumable import Journal, resumable_folder
from .described import check_described
from .forms import Form, Rules
from .pieces import pieces_of
from .plan import HEAD, Output, Source, planned_outputs, shards_of

MODEL_TYPE = "deepseek_v4"
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_BESIDE = (".json", ".txt", ".jinja", ".model", ".tiktoken", ".md")
_OWN = ("config.json", INDEX, "README.md")
# What Python and MLX hold themselves.
_PROCESS_BYTES = 300 << 20


@dataclass(frozen=True)
class Plan:
    """What a conversion makes.

    Attributes:
        source: the release's folder.
        config: content of the new config.json.
        shards: the outputs of each file.
    """

    source: Path
    config: dict[str, Any]
    shards: list[list[Output]]

    @property
    def files(self) -> list[str]:
        """Names of the files with the shards."""
        count = len(self.shards)
        if count == 1:
            return ["model.safetensors"]
        return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]

    @property
    def sizes(self) -> list[int]:
        """Bytes of the tensors of each file."""
        return [sum(output.nbytes for output in shard) for shard in self.shards]

    @property
    def work(self) -> str:
        """A digest of all that the result depends on: the release's files, and the plan."""
        files = sorted(self.source.glob("*.safetensors"))
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        text = repr((stats, self.config, self.shards))
        return hashlib.sha256(text.encode()).hexdigest()


def is_deepseek_v4(folder: Path) -> bool:
    """Whether a folder's config.json is one of DeepSeek V4."""
    where = folder / "config.json"
    return where.exists() and read_json(where).get("model_type") == MODEL_TYPE


def convert_deepseek_v4(
    source: Path,
    destination: Path,
    rules: Rules,
    *,
    dtype: str | None = None,
    head_only: bool = False,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Convert target and head; what is done when it is stopped is not done again.

    Disk space and memory that it needs are printed on standard error, and checked, before a tensor
    is read.

    Args:
        source: the release's folder.
        destination: the folder to make, which appears whole.
        rules: the forms of the matrices.
        dtype: type of what is BF16 in the release, as MLX calls it; None keeps it.
        head_only: leave the target out; the folder is then a drafter's.
        overwrite, finish: see `convert_target`.

    Raises:
        InputError: the release cannot be used, a rule does not fit, space is missing, or see
            `resumable_folder`.
    """
    plan = _planned(source, rules, dtype, head_only)
    with resumable_folder(destination, plan.work, overwrite=overwrite) as journal:
        _check_room(plan, journal, destination)
        _write_shards(plan, journal)
        _write_rest(plan, journal.content)
        if finish:
            finish(journal.content)


def _planned(source: Path, rules: Rules, dtype: str | None, head_only: bool) -> Plan:
    config = read_json(source / "config.json")
    headers = tensor_headers(source)
    if config.get("quantization"):
        found = "weights in MLX's forms already"
        raise InputError(source, found, "a release", "It is loaded as it is.")
    if head_only and not any(name.startswith(HEAD) for name in headers):
        raise InputError(source, "no head (mtp.*)", "a checkpoint with one, for --head-only")
    experts = checked_args(source / "config.json", config).n_routed_experts
    kind = _DTYPES[dtype] if dtype else None
    outputs = planned_outputs(Source(source, headers), rules, kind, experts, head_only)
    check_described(source, config, outputs, head_only)
    return Plan(source, _new_config(config, outputs, dtype), shards_of(outputs))


def _new_config(
    config: Mapping[str, Any], outputs: Sequence[Output], dtype: str | None
) -> dict[str, Any]:
    """The config with MLX's quantization: the form of most matrices, and the others' own."""
    changed = {k: v for k, v in config.items() if k not in ("quantization_config", "expert_dtype")}
    if dtype:
        changed["torch_dtype"] = dtype
    forms: dict[str, Form] = {each.name: each.form for each in outputs if each.form is not None}
    if not forms:
        return changed
    [(usual, _)] = Counter(forms.values()).most_common(1)
    own = {name: form.entry() for name, form in forms.items() if form != usual}
    changed["quantization"] = usual.entry() | own
    return changed


def _check_room(plan: Plan, journal: Journal, destination: Path) -> None:
    """Say what the conversion needs, and refuse one whose disk or memory does not do."""
    rows = list(zip(plan.files, plan.sizes, strict=True))
    done = sum(size for name, size in rows if journal.has(name))
    needed, free = sum(plan.sizes) - done, shutil.disk_usage(journal.content).free
    held = _PROCESS_BYTES + max(each.working_bytes for shard in plan.shards for each in shard)
    memory = device_memory()
    message = f"{destination}: {len(rows)} files, {shown_bytes(needed)} of disk"
    message += f" ({shown_bytes(free)} free), {shown_bytes(held)} of memory"
    message += f" ({shown_bytes(max(memory.free, 0))} free)"
    if done:
        message += f"; {shown_bytes(done)} in {journal.count} files are done"
    tqdm.write(message, file=sys.stderr)
    if needed > free:
        found = f"{shown_bytes(free)} free on its disk"
        raise InputError(destination, found, f"{shown_bytes(needed)} for the converted files")
    if held > memory.free:
        found = f"{shown_bytes(max(memory.free, 0))} free of {memory.name}"
        raise InputError("memory", found, f"{shown_bytes(held)} for the largest matrix")


def _write_shards(plan: Plan, journal: Journal) -> None:
    tensors, experts = read_tensors(plan.source), plan.config["n_routed_experts"]
    bar = tqdm(total=sum(plan.sizes), desc="Converting", unit="B", unit_scale=True, leave=False)
    with bar:
        for name, size, shard in zip(plan.files, plan.sizes, plan.shards, strict=True):
            if journal.has(name):
                bar.update(size)
                continue
            parts = {key: part for output in shard for key, part in output.parts.items()}
            with TensorFile(journal.content / f"{name}.part", parts) as file:
                for output in shard:
                    for key, array in pieces_of(output, tensors, plan.source, experts):
                        file.write(key, array)
                        bar.update(array.nbytes)
                    mx.clear_cache()
            journal.enter(name)


def _write_rest(plan: Plan, folder: Path) -> None:
    """Write the index and config.json, and copy the tokenizer's files."""
    if len(plan.shards) > 1:
        where = {
            key: name
            for name, shard in zip(plan.files, plan.shards, strict=True)
            for output in shard
            for key in output.parts
        }
        index = {"metadata": {"total_size": sum(plan.sizes)}, "weight_map": where}
        write_json(folder / INDEX, index)
    for file in sorted(plan.source.iterdir()):
        if file.suffix in _BESIDE and file.name not in _OWN and file.is_file():
            shutil.copyfile(file, folder / file.name)
    write_json(folder / "config.json", plan.config)
