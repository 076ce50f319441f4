"""The bench's report: what it says of a measurement, what it keeps to itself, where it is put."""

from __future__ import annotations

import getpass
import json
import platform
from pathlib import Path

import pytest
from helpers.pairs import checkpoint
from helpers.worded import worded_target, words

from dspark_mlx import bench
from dspark_mlx.benchmark import report
from dspark_mlx.benchmark.comparison import Row
from dspark_mlx.errors import InputError
from dspark_mlx.system.strict_json import leaves
from dspark_mlx.version import __version__

ROWS = (
    Row("a", 9, 11, 0.2, 0.1, 5.0, 1.0, True, None),
    Row("b", 9, 31, 0.1, 0.1, 2.0, 1.0, None, None),
)
MACHINE = {"device": "gpu Apple M9", "os": "macOS 99.1 arm64"}


@pytest.fixture
def arguments(tmp_path):
    """A short bench of a golden pair on one prompt."""
    prompts = tmp_path / "alices-prompts.jsonl"
    prompts.write_text(json.dumps({"task": "words", "prompt": words(range(5, 12))}) + "\n")
    flags = {
        "--model": worded_target(tmp_path / "Toy-4bit"),
        "--drafter": checkpoint("vanilla", tmp_path / "toy-drafter"),
        "--prompts": prompts,
        "--scheduler": "full",
        "--repeats": 1,
        "--max-tokens": 12,
        "--draft-vocabulary": "full",
    }
    return [str(part) for pair in flags.items() for part in pair]


def test_the_report_of_a_bench(arguments, tmp_path, capsys):
    """A path of the user's, a machine or a model that is not said, or a line of other numbers."""
    path = tmp_path / "report.json"
    assert bench.main([*arguments, "--report", str(path)]) == 0
    text = path.read_text()
    found = json.loads(text)
    values = [str(value) for _, value in leaves(found)]
    assert not any("/" in value for value in values if "GNU/Linux" not in value)
    for private in (str(Path.home()), platform.node(), getpass.getuser(), "alice"):
        assert not any(private in value for value in values if len(private) > 3)
    assert (found["format"], found["format_version"]) == ("dspark_mlx.bench", 1)
    assert found["machine"]["dspark_mlx"] == __version__
    assert {"device", "os", "python", "mlx", "mlx_lm", "memory_gb"} < found["machine"].keys()
    plain = {"bits": 32, "group_size": None, "type": "float32"}
    assert plain.items() <= found["target"].items()
    assert (found["target"]["name"], found["drafter"]["name"]) == ("Toy-4bit", "toy-drafter")
    assert found["scheduler"] == {"asked": "full", "used": "full"}
    settings = {"temperature": 0.0, "max_tokens": 12, "repeats": 1, "prompts": "own"}
    assert settings.items() <= found["settings"].items()
    (row,) = found["rows"]
    assert (row["task"], row["prompt_tokens"], row["tokens"], row["equal"]) == (
        "words",
        7,
        12,
        True,
    )
    assert found["totals"]["speedup"] == pytest.approx(row["speedup"])
    assert found["totals"]["accepted_length"] == pytest.approx(row["accepted_length"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == report.table_line(found)
    assert json.loads(lines[-2])["rows"] == found["rows"]


def test_totals_weigh_texts_by_their_tokens():
    """A mean of ratios, or of the prompts."""
    found = report.totals(ROWS)
    assert found["plain_tps"] == pytest.approx(42 / (11 * 0.2 + 31 * 0.1))
    assert found["speculative_tps"] == pytest.approx(10.0)
    assert found["speedup"] == pytest.approx(found["speculative_tps"] / found["plain_tps"])
    assert found["accepted_length"] == pytest.approx(40 / (10 / 5 + 30 / 2))
    assert found["slowest"] == 1.0


def test_the_line_has_the_columns_of_the_table(monkeypatch):
    """A line that does not fit its head, or that hides what was sampled or held otherwise."""
    monkeypatch.setattr(report, "machine", lambda: MACHINE)
    target = report.ReportedModel("Qwen/Qwen3-4B", 4, 64, "bfloat16", "stored")
    drafter = report.ReportedModel("a|b", 16, None, "bfloat16", "float32")
    made = report.make_report(target, drafter, {}, {"temperature": 0.7}, ROWS)
    assert report.table_line(made) == (
        "| Apple M9, macOS 99.1 arm64 | Qwen/Qwen3-4B, 4-bit | a/b, bfloat16 held in float32 "
        "| 7.9 | 10.0 | 1.26x | 2.35 at temperature 0.7 |"
    )
    columns = {line.count("|") for line in report.TABLE_HEAD.splitlines()}
    assert columns == {report.table_line(made).count("|")}
    readme = Path(__file__).parent.parent.parent / "README.md"
    assert report.TABLE_HEAD in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"),
        ("Qwen/Qwen3-4B@main", "Qwen/Qwen3-4B"),
        ("owner/name/FILE.gguf", "owner/name"),
        ("{}/hub/models--mlx-community--Qwen3-4B-4bit/snapshots/0f", "mlx-community/Qwen3-4B-4bit"),
        ("{}/models/qwen3-4b/", "qwen3-4b"),
        ("{}/Qwen3-4B-Q4_0.gguf", "Qwen3-4B-Q4_0"),
    ],
)
def test_models_are_named_without_their_place(asked, name, tmp_path):
    """The folders above a model, which may have its owner's name."""
    assert report.public_name(asked.format(tmp_path)) == name


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("", "--report: found a folder"),
        ("missing/report.json", "--report: found no folder"),
        ("/proc/report.json", "/proc/report.json: found"),
    ],
)
def test_a_place_that_takes_no_file(place, said, tmp_path, monkeypatch):
    """Minutes of measuring whose result is lost."""
    monkeypatch.setattr(bench.flags, "load_decoder", lambda args: pytest.fail("loaded"))
    with pytest.raises(InputError, match=said):
        bench.main(["--report", str(tmp_path / place)])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(arguments, tmp_path, monkeypatch):
    """An older report gone with a bench that failed, or leftovers of the check beside it."""
    path = tmp_path / "report.json"
    path.write_text("old")

    def interrupted(*arguments, **settings):
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "bench_row", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.main([*arguments, "--report", str(path)])
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.glob(".*")] == []


def test_a_replay_has_no_report(tmp_path):
    """Two results of which one is not written."""
    with pytest.raises(InputError, match=r"^--report: found --replay too"):
        bench.main(["--replay", "rounds.jsonl", "--report", str(tmp_path / "report.json")])
