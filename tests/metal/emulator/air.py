"""A stock kernel's AIR (LLVM bitcode out of a metallib) as LLVM IR for this machine.

AIR is plain LLVM IR but for address spaces, Apple's intrinsics, threadgroup memory as globals and
function constants that the loader fills in. The text is rewritten for each; the arithmetic stays as
Apple's compiler left it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .air_intrinsics import inline_intrinsics
from .program import Buffer
from .toolchain import DISASSEMBLER, run_tool

# What a kernel asks about its lane: byte offset in abi.h's Lane.
LANE = {
    "thread_position_in_grid": 0,
    "thread_position_in_threadgroup": 16,
    "threadgroup_position_in_grid": 32,
    "threads_per_grid": 48,
    "threads_per_threadgroup": 64,
    "threadgroups_per_grid": 80,
    "thread_index_in_simdgroup": 96,
    "simdgroup_index_in_threadgroup": 100,
    "thread_index_in_threadgroup": 104,
    "simdgroups_per_threadgroup": 108,
    "threads_per_simdgroup": 112,
    "thread_index_in_quadgroup": 116,
    "quadgroup_index_in_threadgroup": 120,
}
SHARED = re.compile(
    r"^(@[\w.$]+) = internal (?:unnamed_addr )?addrspace\(3\) global (.+?) "
    r"(?:undef|zeroinitializer)",
    re.M,
)


@dataclass(frozen=True)
class HostModule:
    """LLVM IR with the runtime's two entry points, and the kernel's buffers in order."""

    text: str
    buffers: list[Buffer]


def host_module(bitcode: bytes, constants: Mapping[int, int]) -> HostModule:
    """The kernel of an AIR module for this machine.

    Args:
        bitcode: of one kernel.
        constants: values of function constants by their index; the others are 0.
    """
    text = _disassembled(bitcode)
    metadata = dict(re.findall(r"^(!\d+) = (?:distinct )?(!\{.*\})$", text, re.M))
    kernel = re.search(r"!air\.kernel = !\{(!\d+)\}", text)
    assert kernel is not None
    described = re.match(r"!\{ptr @([\w.$]+), !\d+, (!\d+)[,}]", metadata[kernel.group(1)])
    assert described is not None
    function, arguments = described.groups()
    details = [metadata[ref] for ref in re.findall(r"!\d+", metadata[arguments])]
    shared = SHARED.findall(text)
    text = _set_constants(_retargeted(text), constants)
    buffers, entry = _entry(function, _parameter_types(text, function), details)
    initialise = _initialise(text, shared)
    text, intrinsics = inline_intrinsics(text)
    return HostModule("\n".join((text, *entry, *initialise, *intrinsics, "")), buffers)


def _disassembled(bitcode: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "kernel.bc"
        module.write_bytes(bitcode)
        return run_tool(DISASSEMBLER, module, "-o", "-")


def _retargeted(text: str) -> str:
    """Without Apple's target, address spaces, sections; with accesses that are to be checked."""
    text = re.sub(r"^@llvm\.(global_ctors|compiler\.used|used) = .*\n", "", text, flags=re.M)
    text = re.sub(r', section "[^"]*"|(?<=[)\d]) section "[^"]*"', "", text)
    text = re.sub(r"^target (datalayout|triple).*\n", "", text, flags=re.M)
    text = re.sub(r" ?addrspace\(\d\)", "", text)
    text = re.sub(r"\.p\d\.p\d\.i64", ".p0.p0.i64", text)
    text = text.replace("addrspacecast ptr", "bitcast ptr")
    text = re.sub(r"^declare void @llvm\.(memcpy|memmove)\.p0\.p0\.i64.*\n", "", text, flags=re.M)
    # Attributes of the function that name features of Apple's target.
    named = r'"(min-legal-vector-width|frame-pointer|no-builtins)"(="[^"]*")?'
    text = re.sub(r"^attributes .*$", lambda m: re.sub(named, "", m.group(0)), text, flags=re.M)
    for attribute in set(re.findall(r"^define [^\n]*? (#\d+) ", text, re.M)):
        text = re.sub(
            rf"^attributes {attribute} = \{{",
            f"attributes {attribute} = {{ sanitize_thread",
            text,
            flags=re.M,
        )
    return re.sub(r"^define weak_odr", "define", text, flags=re.M)


def _set_constants(text: str, constants: Mapping[int, int]) -> str:
    """Function constants, which Apple's loader fills in, as globals with their values."""
    pattern = r"^(@[\w.$]*MTL_FC_INIT_(\d+)_\w+) = .*?constant (\w+) undef.*$"

    def value(match: re.Match[str]) -> str:
        name, index, kind = match.groups()
        return f"{name} = internal global {kind} {int(constants.get(int(index), 0))}"

    return re.sub(pattern, value, text, flags=re.M)


def _parameter_types(text: str, function: str) -> list[str]:
    signature = re.search(rf"^define void @{re.escape(function)}\((.*)\)[^()\n]* #\d+ ", text, re.M)
    assert signature is not None
    parts = re.split(r", (?![^<]*>)", signature.group(1))
    types = [re.match(r"(<\d+ x \w+>|\w+)", part.strip()) for part in parts]
    return [found.group(1) for found in types if found is not None]


def _entry(function: str, types: list[str], details: list[str]) -> tuple[list[Buffer], list[str]]:
    """The buffers, and a function that calls the kernel with what one lane is given."""
    buffers: list[Buffer] = []
    body = ["define void @emulator_entry(ptr %buffers, ptr %lane) {"]
    for i, (kind, detail) in enumerate(zip(types, details, strict=True)):
        if '"air.buffer"' in detail:
            slot = f"  %q{i} = getelementptr ptr, ptr %buffers, i64 {len(buffers)}"
            body += [slot, f"  %a{i} = load ptr, ptr %q{i}"]
            buffers.append(_buffer(detail))
        else:
            name = next(n for n in re.findall(r'!"air\.(\w+)"', detail) if n in LANE)
            body += [
                f"  %q{i} = getelementptr i8, ptr %lane, i64 {LANE[name]}",
                f"  %a{i} = load {kind}, ptr %q{i}, align 4",
            ]
    passed = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(types))
    return buffers, [*body, f"  call void @{function}({passed})", "  ret void", "}"]


def _buffer(detail: str) -> Buffer:
    name = re.search(r'arg_name", !"(\w*)"', detail)
    element = re.search(r'arg_type_name", !"(\w*)"', detail)
    assert name is not None and element is not None
    write = '"air.read_write"' in detail or '"air.write"' in detail
    return Buffer(name.group(1), element.group(1), write)


def _initialise(text: str, shared: list[tuple[str, str]]) -> list[str]:
    """A function that names threadgroup memory and runs what the loader would run."""
    body = [
        "declare void @emulator_register_shared(ptr, i64, ptr)",
        "define void @emulator_initialise() {",
    ]
    names = []
    for i, (variable, kind) in enumerate(shared):
        # The end of a mangled name: its length, the name, at times a number behind a dot.
        found = re.search(r"(?:.*E\d+|@)([A-Za-z_]\w*)[.\d]*$", variable)
        assert found is not None
        body += [
            f"  %s{i} = getelementptr {kind}, ptr null, i64 1",
            f"  %n{i} = ptrtoint ptr %s{i} to i64",
            f"  call void @emulator_register_shared(ptr {variable}, i64 %n{i}, ptr @shared{i})",
        ]
        size = len(found.group(1)) + 1
        names.append(f'@shared{i} = private constant [{size} x i8] c"{found.group(1)}\\00"')
    loaders = re.findall(r"^define internal void @(_GLOBAL__sub_I_[\w.]+)\(\)", text, re.M)
    body += [f"  call void @{loader}()" for loader in loaders]
    return [*body, "  ret void", "}", *names]
