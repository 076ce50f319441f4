"""Downloads from the Hub, against a server on this machine: what is asked for, and what is kept.

huggingface-hub reads HF_ENDPOINT once, so a process of its own does the downloads.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.hub_server import COMMIT, HubServer
from helpers.packaged_mtp import HEADS
from helpers.pairs import checkpoint
from huggingface_hub import errors

import dspark_mlx
from dspark_mlx.checkpoint.hub import checkpoint_place, hub_name, resolve
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError

REPO = "owner/name"
NO_IDS = (
    "a b/c",
    "owner",
    "owner/name/file.bin",
    "owner/name@",
    "./a",
    "../a",
    "a/..",
    "a//b",
    "a/b/",
    "/a/b",
    "-x/y",
    "out/my--model",
    "mod\u00e8les/petit",
    "a/b.",
    ".a/b",
    "~nobody-has-this-name/x",
    "C:/models/x",
    "C:\\models\\x",
    "a\\b",
    "a/b\nc",
    "owner/name/../x.gguf",
    "owner/name//x.gguf",
    "a\x00b",
    "hf://a/b",
    "a/b?c",
    "a/[b]",
)
LARGE = 24 << 20  # huggingface-hub writes 10 MiB at a time
RESOLVE = """
import json, sys
from dspark_mlx.errors import InputError
from dspark_mlx.checkpoint.hub import resolve
for line in sys.stdin:
    try:
        answer = {"path": str(resolve(line.strip()))}
    except InputError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""


class Downloads:
    """A process that resolves one name after another."""

    def __init__(self, url: str, home: Path, script: str = RESOLVE) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        here = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"}
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-c", script]
        self.process: Any = subprocess.Popen(command, env=kept | here, text=True, **pipes)

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


CONVERT = RESOLVE.replace(
    "str(resolve(line.strip()))", "convert_mtp(line.strip(), Path('out')).family"
).replace(
    "import json, sys",
    "import json, sys\nfrom pathlib import Path\nfrom dspark_mlx.convert.mtp import convert_mtp",
)


@pytest.mark.slow
def test_of_a_target_the_heads_shards_alone_are_downloaded(tmp_path, monkeypatch):
    """All of a large target fetched for one layer of it."""
    packaged = HEADS["deepseek_v3"]()
    rest = {n: t for n, t in packaged.tensors.items() if n.startswith("model.layers.0.")}
    head = {n: t for n, t in packaged.tensors.items() if n not in rest}
    shards = {"model-00001-of-00002.safetensors": rest, "model-00002-of-00002.safetensors": head}
    files: dict[str, bytes] = {}
    index: dict[str, str] = {}
    for file, tensors in shards.items():
        replace(packaged, tensors=tensors).write(tmp_path / file)
        files[file] = (tmp_path / file / "model.safetensors").read_bytes()
        files["config.json"] = (tmp_path / file / "config.json").read_bytes()
        index |= dict.fromkeys(tensors, file)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    hub = HubServer(REPO, files)
    monkeypatch.chdir(tmp_path)
    assert Downloads(hub.url, tmp_path / "home", CONVERT)(REPO) == {"path": "deepseek_v3"}
    assert {path for path, _ in hub.asked} == files.keys() - {"model-00001-of-00002.safetensors"}
    hub.stop()


LOAD = RESOLVE.replace("str(resolve(line.strip()))", "str(dspark_mlx.load(*eval(line)))").replace(
    "import json, sys", "import json, sys\nimport dspark_mlx"
)


def test_what_is_missing_is_found_out_before_a_large_target_is_fetched(tmp_path):
    """5 GB fetched, and no drafter to decode with; a drafter fetched for a target that is none."""
    config = json.dumps({"model_type": "llama", "_name_or_path": "x/Qwen3-4B"}).encode()
    drafter = "deepseek-ai/dspark_qwen3_4b_block7"
    hub = HubServer(REPO, {"config.json": config, "model.safetensors": b"5 GB"})
    loads = Downloads(hub.url, tmp_path / "home", LOAD)
    hint = "Pass one (--drafter), or none (drafter=False, --no-drafter)."

    error = loads(repr((REPO,)))["error"]
    assert error.startswith(f"{drafter}, the drafter of {REPO}: found no such path, and from the")
    assert error.endswith(hint)
    assert {path for path, _ in hub.asked} == {"config.json"}
    # By any name of the target's own, and where its repository has no configuration.
    hub.repo, hub.files = "a/Qwen3-4B-8bit", {"model.gguf": b"5 GB"}
    assert loads(repr((hub.repo,)))["error"].startswith(f"{drafter}, the drafter of {hub.repo}")
    hub.repo, hub.files = "a/unknown", {"config.json": b"{}", "model.safetensors": b"5 GB"}
    error = loads(repr((hub.repo,)))["error"]
    assert (
        error
        == f"a/unknown: found no drafter; expected a target whose drafter is known here. {hint}"
    )
    # A target that is none is found out before its drafter is fetched, or a drafter that is given.
    for given in ((), ("a/unknown",)):
        error = loads(repr(("a/Qwen3-4B-5bit", *given)))["error"]
        assert error.startswith("a/Qwen3-4B-5bit: found no such path, and from the Hub: 404")
    assert {path for path, _ in hub.asked} == {"config.json"}
    hub.stop()
    # A Hub that cannot be reached is one line at once, not half a minute of huggingface-hub's own.
    for given in (("a/other",), ("a/other/name.gguf", False), (None, "a/other/name.gguf")):
        error = loads(repr(given))["error"]
        assert "not all of it on disk, and the Hub cannot be reached" in error
    written = loads.errors()
    assert "Traceback" not in written and "Retry" not in written


@pytest.mark.parametrize("name", NO_IDS)
def test_what_is_no_id_asks_nobody(name, monkeypatch):
    """A mistyped path that is looked for in the Hub, whose library refuses it in its own way."""
    for ask in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(f"dspark_mlx.checkpoint.hub.{ask}", None)
    with pytest.raises(InputError, match="no such file or folder; expected a path, or a Hub id"):
        resolve(name)
    with pytest.raises(InputError, match="no such file or folder; expected a path, or a Hub id"):
        dspark_mlx.load(name, drafter=False)


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (errors.HFValidationError("Repo id must\nuse"), "from the Hub: Repo id must use"),
        (errors.XetDownloadError("a"), "from the Hub: a"),
        (errors.RevisionResolutionError(), "from the Hub: RevisionResolutionError"),
        (errors.OfflineModeIsEnabled("offline"), "from the Hub: offline"),
        (ImportError("Using SOCKS proxy"), "from the Hub: Using SOCKS proxy"),
        (ValueError("Unknown scheme for proxy URL"), "from the Hub: Unknown scheme"),
        (RuntimeError("Data processing error"), "from the Hub: Data processing error"),
        (TimeoutError(), "from the Hub: TimeoutError"),
        (OSError(28, "No space left on device"), "no space left on the disk at /"),
        (PermissionError(13, "Permission denied", "/x"), "^/x: found Permission denied"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_download_that_fails_says_why_in_one_line(error, found, monkeypatch):
    """Tracebacks of a library's, whose errors have no common kind."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("dspark_mlx.checkpoint.hub.snapshot_download", fail)
    with pytest.raises(InputError, match=found) as refused:
        resolve("owner/name")
    assert "\n" not in str(refused.value)


def test_paths_that_lead_nowhere(tmp_path):
    """A traceback, or the folder that one happens to be in."""
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(tmp_path / "none")
    os.mkfifo(pipe)
    for name, found in (
        ("", "path: found no name"),
        (link, f"{link}: found a link to nothing, {tmp_path}/none"),
        ("x" * 5000, "xxx: found File name too long"),
        ("caf\udce9", "path: found byte 0xe9 at character 4"),
    ):
        with pytest.raises(InputError, match=found):
            resolve(name)
    with pytest.raises(InputError, match="found a pipe or device; expected a folder"):
        checkpoint_place(pipe)


def test_a_home_by_its_sign_and_gguf_in_capitals(tmp_path, monkeypatch):
    """Paths that no shell has expanded; files as llama.cpp's users name them."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "X-Q4_0.GGUF").write_bytes(b"")
    assert resolve("~/X-Q4_0.GGUF") == tmp_path / "X-Q4_0.GGUF"
    assert checkpoint_place(tmp_path) == checkpoint_place(tmp_path / "X-Q4_0.GGUF")
    assert hub_name("owner/name/X.GGUF") == "owner/name"


def test_downloads_without_a_home(monkeypatch):
    """Gigabytes in a folder called "~"."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(InputError, match=r"without a home folder.* Set HF_HOME to a folder"):
        resolve("owner/name")


def test_names_of_the_hub(tmp_path):
    assert hub_name("owner/name@v1") == hub_name("owner/name/x.gguf") == "owner/name"
    assert hub_name(tmp_path) == hub_name("x.gguf") == ""
