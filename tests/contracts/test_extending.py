"""One file is enough: toys of tests/extensions, and the contract tests that cover them unasked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.slow_cases import some_slow

TESTS = Path(__file__).parent.parent


EXTENSIONS = {"toy_head": "heads", "toy_method": "methods", "toy_scheduler": "schedulers"}


def test_one_file_extends_the_package():
    """An addition that has to be made in several places, or that no test sees."""
    files = [TESTS / "contracts" / f"test_{contract}.py" for contract in EXTENSIONS.values()]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-v"]
    command += [part for each in EXTENSIONS for part in ("-p", f"extensions.{each}")]
    command += ["-p", "no:cacheprovider", "-k", "toy", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    for file in files:
        passed = set(re.findall(rf"{file.name}::(test_\w+)\[.*PASSED", done.stdout))
        assert passed == set(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "case",
    some_slow(
        [("toy_head", "train", "rnn,toy}"), ("toy_scheduler", "bench", "toy:N")],
        [("toy_scheduler", "bench", "toy:N")],
    ),
    ids=str,
)
def test_commands_know_what_comes_from_outside(case):
    """A documented way to use an outside module with a command, which the command does not see."""
    extension, command, shown = case
    script = f"import {extension}, runpy; "
    script += f"runpy.run_module('dspark_mlx.{command}', run_name='__main__', alter_sys=True)"
    paths = f"{TESTS / 'extensions'}{os.pathsep}{TESTS.parent}"
    arguments = [sys.executable, "-c", script, "--help"]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0 and shown in done.stdout, done.stderr[-1000:]
