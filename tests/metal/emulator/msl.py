"""The source that `mx.fast.metal_kernel` compiles, as a C++ translation unit for this machine.

Patterns, not a parser: enough for plain compute kernels such as ours and MLX's own headers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .air import LANE
from .program import Buffer

VECTOR = r"(bool|char|uchar|short|ushort|int|uint|long|ulong|half|float|bfloat)([234])"
ALIASES = {
    "thread_execution_width": "threads_per_simdgroup",
    "grid_size": "threads_per_grid",
    "dispatch_threads_per_threadgroup": "threads_per_threadgroup",
    "dispatch_simdgroups_per_threadgroup": "simdgroups_per_threadgroup",
}
# These have three coordinates in abi.h's Lane; the others are one number.
COORDINATES = frozenset(name for name, offset in LANE.items() if offset < 96)
SHARED = re.compile(
    r"(?<=[;{}])(\s*)threadgroup\s+((?:[\w:]+(?:<[^;<>]*>)?\s+)+?)"
    r"(\w+\s*(?:\[[^;]*?\]\s*)*(?:,\s*\w+\s*(?:\[[^;]*?\]\s*)*)*);"
)
KERNEL = re.compile(r"(?:template\s*<([^{};]*?)>\s*)?\[\[kernel\]\]\s*void\s+(\w+)\s*\(")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel: a buffer in an address space, or an attribute of the lane."""

    name: str
    type: str
    attributes: tuple[str, ...]

    @property
    def buffer(self) -> bool:
        return re.search(r"\b(device|constant)\b", self.type) is not None

    @property
    def write(self) -> bool:
        return "device" in self.type.split() and "const" not in self.type.split()


@dataclass(frozen=True)
class Unit:
    """A translation unit with the runtime's entry points, and the kernel's buffers in order."""

    text: str
    buffers: list[Buffer]


def translated(source: str, function: str, template: tuple[str, ...], preamble: str) -> Unit:
    """The unit that runs a kernel with these template arguments."""
    parameters, names = _signature(source, function)
    types = dict(zip(names, template, strict=False))  # the last ones may have defaults
    passed: list[str] = []
    buffers: list[Buffer] = []
    for parameter in parameters:
        if not parameter.buffer:
            passed.append(_lane_argument(parameter))
            continue
        kind = re.sub(r"\w+", lambda m: types.get(m.group(0), m.group(0)), parameter.type)
        pointer = re.sub(r"[&*]\s*$", "*", kind)
        by_reference = "*" if kind.endswith("&") else ""
        passed.append(f"{by_reference}({pointer})buffers[{len(buffers)}]")
        element = re.sub(r"\b(const|device|constant)\b|[*&]", "", kind).strip()
        buffers.append(Buffer(parameter.name, element, parameter.write))
    full = function + (f"<{', '.join(template)}>" if template else "")
    entry = (
        'extern "C" void emulator_entry(void** buffers, const Lane* lane) '
        f'{{ {full}({", ".join(passed)}); }}\nextern "C" void emulator_initialise() {{}}\n'
    )
    body = _vectors(_shared_blocks(_without_attributes(_without_instances(source))))
    return Unit(f'{preamble}\n#line 1 "kernel"\n{body}\n{entry}', buffers)


def syntax_unit(source: str, preamble: str) -> str:
    """The same source for the compiler's checks; MLX's own last line instantiates the template."""
    shared = r"(?<=[;{}])(\s*)(threadgroup\s+(?:[\w:]+(?:<[^;<>]*>)?\s+)+?\w+\s*(?:\[|;|,))"
    body = re.sub(shared, r"\1static \2", _without_attributes(source))
    return f'{preamble}\n#line 1 "kernel"\n{_vectors(body)}\n'


def masked(source: str) -> str:
    """The source with comments and strings blanked, of the same length."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\])*\""
    blank = lambda found: re.sub(r"[^\n]", " ", found.group(0))  # noqa: E731
    return re.sub(pattern, blank, source, flags=re.S)


def _without_attributes(source: str) -> str:
    return re.sub(r"\[\[[^\[\]]*\]\]", "", source)


def _without_instances(source: str) -> str:
    lines = lambda found: "\n" * found.group(0).count("\n")  # noqa: E731
    return re.sub(r"^\s*template\s*\[\[host_name.*?;\s*$", lines, source, flags=re.M | re.S)


def _vectors(source: str) -> str:
    """`float4(a, b)` by a function: clang's vector types have no such constructors."""
    return re.sub(rf"(?<![\w.]){VECTOR}(\s*)\((?!\s*\))", r"metal::make_vec<\1, \2>(", source)


def _shared_blocks(source: str) -> str:
    """`threadgroup float a[4], b;` as blocks that all lanes of a threadgroup share."""
    out, end = [], 0
    for found in SHARED.finditer(masked(source)):
        declared = []
        for one in re.split(r",(?![^\[]*\])", found.group(3)):
            parts = re.match(r"\s*(\w+)\s*(.*)", one, re.S)
            assert parts is not None
            name, sizes = parts.group(1), parts.group(2).strip()
            kind = f"MslShared<{found.group(2).strip()} {sizes}>"
            declared.append(f'static {kind} shared_{name}{{"{name}"}};')
            declared.append(f"auto& {name} = shared_{name}.get();")
        out += [source[end : found.start()], found.group(1), " ".join(declared)]
        end = found.end()
    return "".join(out) + source[end:]


def _signature(source: str, function: str) -> tuple[list[Parameter], list[str]]:
    """A kernel's parameters, and the names of its template's parameters."""
    text = masked(source)
    start = next((m for m in KERNEL.finditer(text) if m.group(2) == function), None)
    if start is None:
        raise ValueError(f"no kernel {function} in the source")
    end, depth = start.end(), 1
    while depth:
        depth += {"(": 1, ")": -1}.get(text[end], 0)
        end += 1
    template = start.group(1) or ""
    names = [re.sub(r"\s*=.*", "", t, flags=re.S).split()[-1] for t in _split(template)]
    return [_parameter(part) for part in _split(text[start.end() : end - 1])], names


def _split(text: str) -> list[str]:
    """Parts between commas that stand in no bracket."""
    parts, depth, last = [], 0, 0
    for i, letter in enumerate(text):
        depth += {"(": 1, "[": 1, "<": 1, ")": -1, "]": -1, ">": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(text[last:i])
            last = i + 1
    return [part for part in (*parts, text[last:]) if part.strip()]


def _parameter(text: str) -> Parameter:
    attributes = tuple(a.strip() for a in re.findall(r"\[\[(.*?)\]\]", text))
    found = re.match(r"(.*?)(\w+)\s*$", re.sub(r"\[\[.*?\]\]", "", text).strip(), re.S)
    assert found is not None
    return Parameter(found.group(2), " ".join(found.group(1).split()), attributes)


def _lane_argument(parameter: Parameter) -> str:
    named = (ALIASES.get(a, a) for a in parameter.attributes)
    name = next(n for n in named if n in LANE)
    if name not in COORDINATES:
        return f"lane->{name}"
    size = parameter.type[-1]
    if not size.isdigit():
        return f"lane->{name}[0]"
    each = ", ".join(f"lane->{name}[{i}]" for i in range(int(size)))
    return f"metal::make_vec<{parameter.type[:-1]}, {size}>({each})"
