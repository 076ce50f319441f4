"""What speaks against a source as Metal: address spaces, conversions, C++14, own rules."""

from __future__ import annotations

import re
import subprocess

from .mlx_source import PREAMBLE, mlx_headers
from .msl import masked, syntax_unit
from .toolchain import CLANG, SHIM, Toolchain

RULES = (
    (r"\bdouble\b", "Metal has no double"),
    (r"\bstd::", "Metal has no std"),
    (
        r"\b(new|delete|try|catch|throw|goto|virtual|dynamic_cast|typeid|thread_local)\b",
        "not Metal",
    ),
    (r"\[[&=]?\]\s*\(", "no lambdas before Metal 3.2"),
    (r"\bstatic\b(?!\s*_?(assert|cast|constexpr|const\b))", "no static variables in functions"),
)
READINGS = {
    "address spaces": ("-std=c++17", "-DMSL_CHECK_SPACES", "-Wno-everything"),
    "conversions": ("-std=c++17", "-DMSL_CHECK_TYPES", "-Wno-everything"),
    "C++14": ("-std=c++14", "-Werror=c++17-extensions", "-Werror=c++20-extensions"),
}


def complaints(toolchain: Toolchain, source: str, preamble: str = PREAMBLE) -> dict[str, str]:
    """All that speaks against a source, by kind of check; empty for a clean one."""
    found = {}
    broken = [
        f"line {masked(source)[: m.start()].count(chr(10)) + 1}: {why}: {m.group(0)}"
        for pattern, why in RULES
        for m in re.finditer(pattern, masked(source))
    ]
    if broken:
        found["rules"] = "\n".join(broken)
    unit = toolchain.path("check", source, ".cpp")
    unit.write_text(syntax_unit(source, preamble))
    for name, options in READINGS.items():
        errors = _errors(_clang(unit, *options))
        if not errors and name == "address spaces":
            errors = _crossing_casts(_clang(unit, *options, "-Xclang", "-ast-dump"))
        if errors:
            found[name] = "\n".join(errors)
    return found


def _clang(unit, *options: str) -> subprocess.CompletedProcess[str]:
    include = ("-I", SHIM, "-isystem", mlx_headers())
    quiet = ("-Wno-unknown-attributes", "-fno-exceptions", "-ferror-limit=30")
    command = (CLANG, *options, *quiet, "-fsyntax-only", *include, unit)
    return subprocess.run([str(a) for a in command], capture_output=True, text=True)


def _errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    # MLX's own utils.h qualifies two parameters in a way that Apple's clang alone accepts.
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    return [line for line in lines if "/kernels/utils.h" not in line]


def _crossing_casts(done: subprocess.CompletedProcess[str]) -> list[str]:
    """C-style casts from one address space to another, which clang does not call an error."""
    casts = [
        line
        for line in done.stdout.splitlines()
        if "CStyleCastExpr" in line and "AddressSpaceConversion" in line
    ]
    return [f"a cast crosses address spaces: {line.strip()[-90:]}" for line in casts[:1]]
