"""Downloads from the Hub, against a server on this machine: what is asked for, and what is kept.

huggingface-hub reads HF_ENDPOINT once, so a process of its own does the downloads.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer
from pairs import checkpoint

from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.hub import hub_name, resolve

REPO = "owner/name"
LARGE = 24 << 20  # huggingface-hub writes 10 MiB at a time
RESOLVE = """
import json, sys
from dspark_mlx.errors import InputError
from dspark_mlx.hub import resolve
for line in sys.stdin:
    try:
        answer = {"path": str(resolve(line.strip()))}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Downloads:
    """A process that resolves one name after another."""

    def __init__(self, url: str, home: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        here = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-c", RESOLVE]
        self.process = subprocess.Popen(command, env=kept | here, text=True, **pipes)

    def __call__(self, name: str) -> dict[str, str]:
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def errors(self) -> str:
        """What it wrote on standard error, and its end."""
        return self.process.communicate()[1]


@pytest.fixture
def published(tmp_path) -> dict[str, bytes]:
    """A drafter as published, among files that nobody needs here."""
    source = checkpoint("vanilla", tmp_path / "published")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    others = ["train_config.py", "pytorch_model.bin", "consolidated.safetensors", ".gitattributes"]
    others += ["onnx/config.json", "original/model.safetensors", "name-F16.gguf"]
    files["README.md"] = b"---\nlicense: mit\n---\n"
    files |= {name: name.encode() * 99 for name in others}
    return files | {"name-Q8_0.gguf": random.Random(5).randbytes(LARGE)}


@pytest.mark.slow
def test_downloads(tmp_path, published):
    """A script or the same weights thrice fetched; a finished file fetched again; a traceback."""
    hub = HubServer(REPO, published)
    downloads = Downloads(hub.url, tmp_path / "home")
    needed = {"config.json", "model.safetensors", "README.md"}

    # A file that fails ends the download with one error, and the others are kept.
    hub.missing = "model.safetensors"
    assert "from the Hub" in downloads(REPO)["error"]
    hub.missing, done = "", {path for path, _ in hub.asked}
    hub.asked.clear()
    folder = Path(downloads(REPO)["path"])
    assert {path for path, _ in hub.asked} == needed - done
    assert {path.name for path in folder.iterdir()} == needed
    assert all((folder / name).read_bytes() == published[name] for name in needed)
    # Nothing is asked for twice, by whatever revision.
    hub.asked.clear()
    assert {downloads(f"{REPO}{at}")["path"] for at in ("", "@v1", f"@{COMMIT}")} == {str(folder)}
    assert hub.asked == []
    # Of GGUF files, the one that is named; a connection that breaks is taken up where it broke.
    hub.broken = "name-Q8_0.gguf"
    file = Path(downloads(f"{REPO}/name-Q8_0.gguf@main")["path"])
    assert {path for path, _ in hub.asked} == {"name-Q8_0.gguf"}
    first, second = (start for _, start in hub.asked)
    assert first == 0 < second <= LARGE // 2
    assert file.read_bytes() == published["name-Q8_0.gguf"]
    error = downloads("owner/other")["error"]
    assert error.startswith("owner/other: found no such path, and from the Hub: 404")

    hub.stop()
    assert downloads(REPO)["path"] == str(folder)
    assert downloads(f"{REPO}/name-Q8_0.gguf")["path"] == str(file)
    for name in ("owner/other", f"{REPO}/name-F16.gguf"):
        error = downloads(name)["error"]
        assert "not all of it on disk, and the Hub cannot be reached" in error
        assert error.endswith("Check the network, or download it elsewhere and pass the folder.")
    assert "100%" in downloads.errors()  # a progress bar
    assert convert_drafter(folder, tmp_path / "out", progress=False).head == "vanilla"


@pytest.mark.parametrize("name", ["a b/c", "owner", "owner/name/file.bin", "owner/name@"])
def test_what_is_no_id_asks_nobody(name):
    with pytest.raises(InputError, match="no such file or folder; expected a path, or a Hub id"):
        resolve(name)


def test_names_of_the_hub(tmp_path):
    assert hub_name("owner/name@v1") == hub_name("owner/name/x.gguf") == "owner/name"
    assert hub_name(tmp_path) == hub_name("x.gguf") == ""
