"""One file is enough: toys of tests/extensions, and the contract tests that cover them unasked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("extension", "contract"),
    [("toy_head", "heads"), ("toy_method", "methods"), ("toy_scheduler", "schedulers")],
)
def test_one_file_extends_the_package(extension, contract):
    """An addition that has to be made in several places, or that no test sees."""
    file = TESTS / "contracts" / f"test_{contract}.py"
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-v"]
    command += ["-p", f"extensions.{extension}", "-p", "no:cacheprovider", "-k", "toy", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    passed = set(re.findall(r"::(test_\w+)\[.*PASSED", done.stdout))
    assert passed == set(re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE))
