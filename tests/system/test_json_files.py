"""JSON that is read: what is valid is taken; what is not is refused by its place, in one line."""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest

from dspark_mlx.errors import InputError
from dspark_mlx.evaluation.tasks import read_tasks
from dspark_mlx.system.files import check_format, read_json, read_json_lines
from dspark_mlx.terminal.sampling_flags import read_json_argument
from dspark_mlx.text.prompt_files import read_prompts
from dspark_mlx.train.data.prompt_files import read_prompt_turns

GOOD = json.dumps({"task": "t", "prompt": "hello"})


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (f"{GOOD}\r\n", ["hello"]),
        (f"{GOOD}\n\n  \t\n{GOOD}\n\n", ["hello", "hello"]),
        (f"\ufeff{GOOD}", ["hello"]),
        (f"\ufeff\n{GOOD}", ["hello"]),
        *(
            (GOOD.replace("hello", f"a{mark}b"), [f"a{mark}b"])
            for mark in "\u2028\u2029\x85\x7f\u200b"
        ),
    ],
)
def test_lines_end_at_line_feeds_alone(tmp_path, content, prompts):
    """Strings cut at Unicode's separators; blank lines and a byte order mark refused."""
    path = tmp_path / "f.jsonl"
    path.write_bytes(content.encode())
    assert [prompt.turns[0] for prompt in read_prompts(path)] == prompts


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "f.jsonl: found no lines"),
        (b"\n \r\n", "f.jsonl: found no lines"),
        (b"\n{", r"f.jsonl:2: found text that is not JSON"),
        (b"{}\n\xe9", r"f.jsonl:2: found bytes that are not text \(0xe9 at byte 1\)"),
        ('{"task": "t"}\u2028{}'.encode(), "f.jsonl:1: found text that is not JSON"),
        (b"[" * 100_000, "f.jsonl:1: found JSON nested too deeply"),
        (b'{"task": "t", "prompt": null}', r'expected {"prompt": text} or {"turns": \['),
    ],
)
def test_what_is_no_line_is_named_by_its_number(tmp_path, content, found):
    """A traceback of a decoder, a parser, or of what took the line later."""
    path = tmp_path / "f.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=found) as refused:
        read_prompts(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"a": ' * 100_000, "found JSON nested too deeply"),
        ('{"a": {"b": [1, %s]}}' % ("9" * 301), "found a.b.1 of 301 digits"),
        ('{"a": -%s}' % ("9" * 5000), "found a of 5001 digits"),
        ("9" * 400, "found a number of 400 digits"),
        ("[1]", "found a JSON list; expected a JSON object"),
        ("{", "found text that is not JSON"),
    ],
)
def test_a_file_that_is_no_object(tmp_path, content, found):
    """RecursionError, or Python's limit for the digits of a number."""
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"^{path}: {found}"):
        read_json(path)


def test_integers_that_checkpoints_have(tmp_path):
    """model_max_length: ten to the thirtieth."""
    path = tmp_path / "config.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1000000000000000019884624838656}')
    assert read_json(path) == {"a": 1000000000000000019884624838656}


def test_places_that_are_no_files(tmp_path):
    """A pipe that is waited for without end, a device read without end, a traceback."""
    pipe, link, large = tmp_path / "pipe", tmp_path / "link", tmp_path / "large"
    os.mkfifo(pipe)
    link.symlink_to("nothing")
    with large.open("wb") as file:
        file.truncate(101 << 20)
    cases = {
        tmp_path: "no readable file (Is a directory)",
        pipe: "a pipe or device",
        link: "no readable file (No such file or directory)",
        large: "more than 100 MB",
        tmp_path / ("x" * 300): "no readable file (File name too long)",
    }
    for path, found in cases.items():
        with pytest.raises(InputError) as refused:
            read_json(path)
        assert refused.value.found == found
    with pytest.raises(InputError, match="found a line without end"):
        read_json_lines(large, "JSON lines", "line")


def test_lines_come_through_pipes(tmp_path):
    """--prompts <(command), a shell's pipe by name."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(GOOD,))
    writer.start()
    assert len(read_prompts(pipe)) == 1
    writer.join()


def test_json_in_an_argument_or_the_file_it_names(tmp_path):
    """Each its own way to fail."""
    path = tmp_path / "schema.json"
    path.write_text('\ufeff{"type": "string"}', encoding="utf-8")
    assert read_json_argument("--s", str(path)) == read_json_argument("--s", '{"type": "string"}')
    for text, found in (
        ("[" * 100_000, "--s: found JSON nested too deeply"),
        ('{"a": %s}' % ("9" * 5000), "--s: found a of 5000 digits"),
        ("none.json", r"none.json: found no readable file \(No such file"),
        ("x" * 5000, r"found no readable file \(File name too long\)"),
        ("a\0b", r"found no readable file \(embedded null byte\)"),
    ):
        with pytest.raises(InputError, match=found) as refused:
            read_json_argument("--s", text)
        assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, {"b": -float("inf")}]])
def test_formats_of_this_package_have_finite_numbers(value):
    """A NaN in a file of ours, which decides what is drafted."""
    data = {"format": "f", "format_version": 1, "a": value}
    with pytest.raises(InputError, match=r"x: found a(\.1\.b)? (nan|-?inf); expected a finite"):
        check_format("x", data, "f", 1)


def test_deep_files_do_not_depend_on_how_deep_the_caller_is(tmp_path):
    """RecursionError in what walks a file's values after it was read."""
    path, depth = tmp_path / "config.json", sys.getrecursionlimit() // 2
    deep = "[" * depth + "]" * depth
    path.write_text(f'{{"format": "f", "format_version": 1, "a": {deep}}}')
    assert check_format(path, read_json(path), "f", 1)


def test_one_file_serves_every_command(tmp_path):
    """A prompt that three commands take and two refuse."""
    path = tmp_path / "sums.jsonl"
    path.write_text('{"prompt": "1+1?"}\n{"turns": ["2+2?", "and 3?"], "task": "more", "id": 7}\n')
    one, two = read_prompts(path)
    assert (one.task, one.turns) == ("sums", ("1+1?",))
    assert (two.task, two.turns) == ("more", ("2+2?", "and 3?"))
    (task,) = read_tasks(source=path)
    assert (task.name, task.prompts) == ("sums", (one.turns, two.turns))
    assert read_prompt_turns(tmp_path) == (one.turns, two.turns)
