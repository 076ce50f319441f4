"""Model cards and uploads: what a card says, and that nothing is lost where the Hub fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.gguf_fixtures import checkpoint as target_checkpoint
from helpers.gguf_writer import write as write_gguf_target
from helpers.packaged_eagle3 import EAGLE3
from helpers.pairs import checkpoint
from huggingface_hub import metadata_load
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError

from dspark_mlx.convert.__main__ import main
from dspark_mlx.convert.card import origin_of
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import read_json


class StubHub:
    """Takes what `HfApi` takes; fails where it is told to."""

    def __init__(self, fails: str = "", error: Exception | None = None) -> None:
        self.calls: list[tuple] = []
        self._fails, self._error = fails, error

    def _called(self, name: str, *what: object) -> None:
        self.calls.append((name, *what))
        if name == self._fails:
            raise self._error or HTTPError("the connection broke\nand a long story")

    def whoami(self):
        self._called("whoami")
        return {"name": "me"}

    def create_repo(self, repo_id, *, exist_ok):
        self._called("create_repo", repo_id, exist_ok)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self._called("upload_folder", repo_id, files)


def drafter_arguments(tmp_path: Path, *more: str) -> list[str]:
    source = tmp_path / "source"
    if not source.exists():
        checkpoint("vanilla", source)
        config = read_json(source / "config.json") | {"_name_or_path": "owner/target"}
        (source / "config.json").write_text(json.dumps(config))
    return ["drafter", "--from", str(source), "--to", str(tmp_path / "out"), *more]


def test_the_folder_and_its_card_are_uploaded(tmp_path, capsys):
    """A card that is written and not sent; a file that is left out."""
    hub = StubHub()
    assert main(drafter_arguments(tmp_path, "--upload-repo", "me/drafter", "-q"), hub) == 0
    assert [call[0] for call in hub.calls] == ["whoami", "create_repo", "upload_folder"]
    assert hub.calls[1] == ("create_repo", "me/drafter", True)
    _, repo, files = hub.calls[2]
    assert repo == "me/drafter"
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert "uploaded to me/drafter" in capsys.readouterr().out


def test_a_drafters_card(tmp_path):
    """Another licence than the source's, or a command that does not run."""
    arguments = drafter_arguments(tmp_path, "--card", "-q", "--q-group-size", "32")
    front = "---\nlicense: apache-2.0\nbase_model:\n- owner/target\n---\n\n# It\n"
    (tmp_path / "source" / "README.md").write_text(front)
    assert main(arguments) == 0
    card = tmp_path / "out" / "README.md"
    assert metadata_load(card) == {
        "license": "apache-2.0",
        "base_model": ["owner/target"],
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx", "dspark", "speculative-decoding"],
    }
    text = card.read_text()
    assert "--model owner/target --drafter out" in text
    assert "4 bits in groups of 32" in text and "Converted from `source`" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("name", EAGLE3)
def test_the_card_of_an_eagle3_drafter(tmp_path, name):
    """A card that asks for the block of a drafter that has none."""
    EAGLE3[name](tmp_path / "source")
    arguments = ["drafter", "--from", str(tmp_path / "source"), "--to", str(tmp_path / "out")]
    assert main([*arguments, "--card"]) == 0
    steps = read_json(tmp_path / "out" / "config.json")["steps"]
    assert f"chains of up to {steps} tokens" in (tmp_path / "out" / "README.md").read_text()


def test_a_card_that_cannot_be_written_leaves_no_folder(tmp_path, monkeypatch):
    """A converted folder without its card, which a second try calls an existing one."""

    def fail(*_):
        raise InputError("card", "nothing", "a card")

    monkeypatch.setattr("dspark_mlx.checkpoint.model_card.write_text", fail)
    with pytest.raises(InputError, match="card"):
        main(drafter_arguments(tmp_path, "--card"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_targets_card(tmp_path):
    source = target_checkpoint(tmp_path / "source")
    out = tmp_path / "out"
    assert main(["target", "--from", str(source), "--to", str(out), "--card"]) == 0
    assert metadata_load(out / "README.md") == {
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["mlx"],
    }
    text = (out / "README.md").read_text()
    assert "dspark_mlx.generate --model out" in text and "not quantised" in text
    assert "licence was not stated" in text


def test_a_gguf_file_states_licence_and_base(tmp_path):
    changes = {
        "general.license": "mit",
        "general.base_model.0.repo_url": "https://huggingface.co/owner/base",
    }
    origin = origin_of("x.gguf", write_gguf_target(tmp_path / "x.gguf", **changes))
    assert (origin.name, origin.licence, origin.base) == ("x.gguf", "mit", ("owner/base",))


def test_a_hub_id_is_the_base(tmp_path):
    """The place in the cache named in a public card."""
    origin = origin_of("owner/name@main", target_checkpoint(tmp_path / "source"))
    assert (origin.name, origin.base) == ("owner/name", ("owner/name",))


def test_no_card_unless_asked_for(tmp_path):
    assert main(drafter_arguments(tmp_path)) == 0
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize(
    "error",
    [HTTPError("no route to host"), LocalTokenNotFoundError("Token is required"), OSError()],
)
def test_without_network_or_token_nothing_is_begun(tmp_path, error):
    """An hour of conversion, and then no upload."""
    hub = StubHub("whoami", error)
    with pytest.raises(InputError, match=r"--upload-repo: found .*log in"):
        main(drafter_arguments(tmp_path, "--upload-repo", "me/drafter"), hub)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("repo", ["drafter", "me/my drafter", "https://x/me/drafter"])
def test_a_bad_id_is_named(tmp_path, repo):
    hub = StubHub()
    with pytest.raises(InputError, match="expected OWNER/NAME"):
        main(drafter_arguments(tmp_path, "--upload-repo", repo), hub)
    assert hub.calls == []


@pytest.mark.parametrize("fails", ["create_repo", "upload_folder"])
def test_a_failed_upload_loses_nothing(tmp_path, fails):
    """The converted folder removed, or a traceback with no way on."""
    with pytest.raises(InputError) as error:
        main(drafter_arguments(tmp_path, "--upload-repo", "me/drafter"), StubHub(fails))
    out = tmp_path / "out"
    assert f"hf upload me/drafter {out}" in str(error.value)
    assert "the connection broke" in str(error.value) and "story" not in str(error.value)
    names = {path.name for path in out.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}


def test_a_broken_card_of_the_source_is_named(tmp_path):
    arguments = drafter_arguments(tmp_path, "--card")
    (tmp_path / "source" / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(InputError, match="front matter that is no YAML"):
        main(arguments)
    assert not (tmp_path / "out").exists()
