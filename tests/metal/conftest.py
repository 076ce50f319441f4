"""Fixtures: an emulator that keeps what it compiled between runs, and MLX's kernels by version."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from .emulator.emulator import Emulator
from .emulator.toolchain import Toolchain, why_no_air, why_not
from .stock.wheel import VERSIONS, NoWheelError, stock_kernels


def _folder(request, name: str) -> Path:
    """A folder that outlives the run where pytest has a cache, which can be switched off."""
    if request.config.pluginmanager.hasplugin("cacheprovider"):
        return request.config.cache.mkdir(name)
    return request.getfixturevalue("tmp_path_factory").mktemp(name)


@pytest.fixture(scope="session")
def emulator(request):
    """Skips where there is no compiler."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return Emulator(Toolchain(_folder(request, "metal-emulator")))


@pytest.fixture(scope="session")
def stock_of(request):
    """A factory: version to StockKernels; skips where they cannot be had or read."""

    folder = _folder(request, "metal-wheels")

    @cache  # without a network, pip takes its time to say so: it is asked once
    def found_or_reason(version: str):
        try:
            return stock_kernels(version, folder)
        except NoWheelError as error:
            return str(error)

    def find(version: str):
        found = why_no_air() or found_or_reason(version)
        if isinstance(found, str):
            pytest.skip(found)
        return found

    return find


@pytest.fixture(scope="session")
def stock(stock_of):
    """The newest version's kernels."""
    return stock_of(VERSIONS[-1])
