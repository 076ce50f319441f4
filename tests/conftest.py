"""Fixtures: the golden target, pairs and training runs of it, a cache folder of one's own.

The first line of a run says with what it is run.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import pytest
from helpers.pairs import TARGET, make_decoder
from helpers.training_toys import begun, greedy_texts
from mlx_lm.utils import load_model

from dspark_mlx.targets.tap import Target
from dspark_mlx.terminal.blas import blas_library


def pytest_addoption(parser):
    parser.addoption("--fuzz-seed", type=int, default=0, help="of the damaged inputs (default: 0)")
    parser.addoption("--fuzz-cases", type=int, default=2000, help="so many (default: 2000)")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session):
    """The versions that a failure depends on; pytest's own header is not shown with -q."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(versions())


def versions() -> str:
    """Versions, MLX's device and the BLAS library of its products on a CPU, in one line."""
    names = ("mlx", "mlx-lm", "numpy", "transformers")
    said = [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)]
    library = blas_library()
    said.append(f"{platform.system()} {platform.machine()}, {mx.default_device()}")
    said.append(f"BLAS {Path(library).name if library else 'of the system'}")
    return ", ".join(said)


@pytest.fixture(autouse=True)
def cache_home(monkeypatch, tmp_path):
    """No test reads or fills the user's cache folder."""
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


@pytest.fixture
def built_anew():
    """Compiled functions run as they are, without a C++ compiler."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def target_model():
    """The golden qwen3 target in float32, loaded once; whoever taps it closes it."""
    model, _ = load_model(TARGET, lazy=True)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model


@pytest.fixture
def pair(target_model, tmp_path):
    """A factory: name of a golden drafter to a Decoder; the target is untapped afterwards."""
    made = []

    def make(name: str, scheduler: str = "full", **options):
        folder = tmp_path / f"pair_{name}_{len(made)}"
        decoder = make_decoder(target_model, name, folder, scheduler, **options)
        made.append(decoder)
        return decoder

    yield make
    for decoder in made:
        decoder.engine.target.close()


@pytest.fixture(scope="session")
def corpus(target_model):
    """Greedy texts of the golden target, for training runs."""
    return greedy_texts(target_model, 16)


@pytest.fixture
def start(tmp_path):
    """What a training run begins with: new weights in the shape of a golden drafter."""
    return begun(tmp_path)


@pytest.fixture
def target(target_model, start):
    """The golden target, tapped as `start` reads it."""
    made = Target(target_model, start.config.taps, "golden target")
    yield made
    made.close()
