"""Apple's intrinsics that have to be written into the module: conversions and the matrix product.

Those over whole numbers and floats stand in the runtime (air_functions.cpp, simd.cpp). bfloat,
vectors of any width and 64-wide matrices have no calling convention that C++ could meet.
"""

from __future__ import annotations

import re

WIDTH = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
CONVERT = re.compile(
    r"^declare (?P<to>\S+|<.*?>) @(?P<name>air\.convert\.(?P<tk>\w)\.\w+\.(?P<fk>\w)\.\w+)"
    r"\((?P<of>[^)]+?)\).*$",
    re.M,
)
PREDICATE = re.compile(
    r"^declare (i\d+) @(air\.normalize_function_constant_predicate\.i\d+)\((i\d+)\).*$", re.M
)
MATRIX = re.compile(
    r"^declare <64 x float> @(air\.simdgroup_matrix_8x8_multiply_accumulate[\w.]*)\(.*$", re.M
)


def inline_intrinsics(text: str) -> tuple[str, list[str]]:
    """The module without these declarations, and the definitions that take their place."""
    made: list[str] = []
    for found in CONVERT.finditer(text):
        made += _conversion(found)
    for found in PREDICATE.finditer(text):
        to, name, _ = found.groups()
        made += _function(to, name, to, [f"  ret {to} %x"])
    for found in MATRIX.finditer(text):
        made += _matrix_product(found.group(1))
    for pattern in (CONVERT, PREDICATE, MATRIX):
        text = pattern.sub("", text)
    return text, made


def _function(to: str, name: str, of: str, body: list[str]) -> list[str]:
    return [f"define internal {to} @{name}({of} %x) alwaysinline {{", *body, "}"]


def _conversion(found: re.Match[str]) -> list[str]:
    to, of = found["to"], found["of"].strip()
    element = {kind: re.sub(r"<\d+ x (\w+)>", r"\1", kind) for kind in (to, of)}
    if found["tk"] == found["fk"] == "f":
        wider = WIDTH[element[to]] > WIDTH[element[of]]
        same = element[to] != element[of] and WIDTH[element[to]] == WIDTH[element[of]]
        if same:  # half to bfloat and back, by way of float
            float_of = of.replace(element[of], "float")
            steps = [f"  %f = fpext {of} %x to {float_of}", f"  %r = fptrunc {float_of} %f to {to}"]
            return _function(to, found["name"], of, [*steps, f"  ret {to} %r"])
        instruction = "fpext" if wider else "fptrunc"
    elif found["tk"] == "f":
        instruction = "sitofp" if found["fk"] == "s" else "uitofp"
    else:
        instruction = "fptosi" if found["tk"] == "s" else "fptoui"
    body = [f"  %r = {instruction} {of} %x to {to}", f"  ret {to} %r"]
    return _function(to, found["name"], of, body)


def _matrix_product(name: str) -> list[str]:
    """d = a b + c, of which the first two of the 64 elements are this lane's."""
    body = [f"  %p{v} = alloca [2 x float]" for v in "abcd"]
    for v in "abc":
        for e in (0, 1):
            body += [
                f"  %{v}{e} = extractelement <64 x float> %{v}, i64 {e}",
                f"  %g{v}{e} = getelementptr float, ptr %p{v}, i64 {e}",
                f"  store float %{v}{e}, ptr %g{v}{e}",
            ]
    body += [
        "  call void @emulator_matrix_multiply(ptr %pd, ptr %pa, ptr %pb, ptr %pc)",
        "  %d0 = load float, ptr %pd",
        "  %gd = getelementptr float, ptr %pd, i64 1",
        "  %d1 = load float, ptr %gd",
        "  %r0 = insertelement <64 x float> undef, float %d0, i64 0",
        "  %r1 = insertelement <64 x float> %r0, float %d1, i64 1",
        "  ret <64 x float> %r1",
    ]
    operands = ", ".join(f"<64 x float> %{v}" for v in "abc")
    return [
        f"define internal <64 x float> @{name}({operands}) alwaysinline {{",
        *body,
        "}",
        "declare void @emulator_matrix_multiply(ptr, ptr, ptr, ptr)",
    ]
