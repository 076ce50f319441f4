"""Kept prompts on disk: read back whole, and never half a file's or another pair's."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dspark_mlx import InputError
from dspark_mlx.reuse.disk import Disk
from dspark_mlx.reuse.kept import KeptPrompts

from .test_hits import PAIRS, cold, engine_with, prompt_of, run, same

PLENTY, KEY = 1 << 30, "ab" * 32
HERE = Path(__file__)


@contextmanager
def stored(engine, folder: Path, max_bytes: int = PLENTY, key: str = KEY):
    """The engine with a store on disk, as a process that opens the folder has it."""
    disk = Disk(folder, key)
    try:
        yield replace(engine, kept=KeptPrompts(max_bytes, engine.kept.quantized_from, disk))
    finally:
        disk.close()


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize("name", PAIRS)
def test_what_was_kept_is_there_after_a_restart(name, tmp_path):
    """A state, a window or a pending feature that is not written, or comes back otherwise."""
    engine = engine_with(name)
    system = prompt_of(17)
    prompts = [[*system, i, *prompt_of(5 + i, seed=20 + i)] for i in range(2)]
    with stored(engine, tmp_path) as first:
        before = [run(first, prompt) for prompt in prompts]
        again = [run(first, prompt) for prompt in prompts]
        held = first.kept.nbytes
    with stored(engine, tmp_path) as second:
        assert second.kept.nbytes == held > 0
        for prompt, expected, read in zip(prompts, again, before, strict=True):
            warm = run(second, prompt)
            same(warm, expected)
            assert warm[0].cached_tokens == len(prompt) - 1
            if name != "quantized":
                same(warm, read)
    engine.target.close()


def test_files_are_those_of_what_is_kept(tmp_path):
    """Files that stay when their prompts are dropped: a disk that fills up."""
    engine = engine_with("delta net and attention")
    run(engine, prompt_of(30))
    limit = 3 * engine.kept.nbytes
    with stored(engine, tmp_path, limit) as kept:
        for seed in range(7):
            run(kept, prompt_of(30, seed=seed))
        held = kept.kept.nbytes
    assert 0 < held <= limit
    # Each file has a header, and the tokens before its own.
    assert sum(file.stat().st_size for file in files_of(tmp_path)) < 1.5 * limit
    with stored(engine, tmp_path, limit // 3) as smaller:
        assert smaller.kept.nbytes <= limit // 3
        smaller.kept.clear()
    assert files_of(tmp_path) == []
    engine.target.close()


def test_a_smaller_store_reads_the_newest_files_that_fit_and_no_other(tmp_path, monkeypatch):
    """Gigabytes that are read at the start to be dropped, more than the machine has."""
    engine = engine_with("full attention")
    prompts = [[seed, *prompt_of(19, seed=seed)] for seed in range(6)]
    with stored(engine, tmp_path) as first:
        for prompt in prompts:
            run(first, prompt)
        run(first, [*prompts[3], 7, 8])  # goes on from an older file
        held = first.kept.nbytes
    by_age = sorted(files_of(tmp_path), key=lambda file: file.stat().st_mtime_ns)
    for age, file in enumerate(by_age):
        os.utime(file, ns=(age, age))
    read, whole = [], Disk._read
    monkeypatch.setattr(Disk, "_read", lambda disk, path: read.append(path) or whole(disk, path))
    with stored(engine, tmp_path, held // 2) as second:
        assert 0 < second.kept.nbytes <= held // 2
        assert sorted(read) == files_of(tmp_path)
        found = [
            run(second, prompt)[0].cached_tokens for prompt in (prompts[5], prompts[3], prompts[4])
        ]
    assert found == [19, 19, 0]
    engine.target.close()


@pytest.mark.parametrize("damage", ["cut", "changed", "text", "renamed pair", "pipe"])
def test_damaged_and_foreign_files_are_ignored_with_one_warning(damage, tmp_path):
    """A flipped bit that becomes wrong text; an app that does not start for an old file, or waits
    for a pipe for ever."""
    engine = engine_with("full attention")
    prompts = [[seed, *prompt_of(19, seed=seed)] for seed in range(3)]
    with stored(engine, tmp_path) as first:
        for prompt in prompts:
            run(first, prompt)
    for file in files_of(tmp_path)[:2]:
        content = bytearray(file.read_bytes())
        if damage == "cut":
            file.write_bytes(content[: len(content) // 2])
        elif damage == "text":
            file.write_text("not safetensors")
        elif damage == "pipe":
            file.unlink()
            os.mkfifo(file)
        elif damage == "changed":
            content[-7] ^= 1
            file.write_bytes(content)
        else:
            file.write_bytes(content.replace(KEY.encode(), b"cd" * 32))
    damaged = pytest.warns(UserWarning, match="damaged or foreign are ignored: 2")
    with damaged as said, stored(engine, tmp_path) as second:
        found = [run(second, prompt) for prompt in prompts]
    assert len(said) == 1
    assert sorted(made[0].cached_tokens for made in found) == [0, 0, 19]
    for prompt, made in zip(prompts, found, strict=True):
        same(made, run(cold(engine), prompt))
    engine.target.close()


def test_other_pairs_and_other_processes_are_kept_apart(tmp_path):
    """Features of another drafter; two processes that remove each other's files."""
    engine = engine_with("full attention")
    prompt = prompt_of(20)
    with stored(engine, tmp_path) as first:
        run(first, prompt)
        with pytest.raises(InputError, match="another process"):
            Disk(tmp_path, KEY)
        with stored(engine, tmp_path, key="cd" * 32) as other:
            assert other.kept is not None and other.kept.nbytes == 0
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file"):
        Disk(tmp_path / "file", KEY)
    engine.target.close()


def write_for_ever(folder: Path, seed: int) -> None:
    """What the killed process does: conversations that part, end, and push each other out."""
    engine = engine_with("delta net and attention")
    run(engine, prompt_of(30))
    numbers = random.Random(seed)
    assert engine.kept is not None
    with stored(engine, folder, 12 * engine.kept.nbytes) as kept:
        print("begun", flush=True)
        while True:
            prompt = prompt_of(10, seed=numbers.randrange(3)) + prompt_of(
                numbers.randrange(1, 20), seed=numbers.randrange(9)
            )
            run(kept, prompt, 6)


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_store_that_serves(tmp_path):
    """Half a file; a prefix whose end lies in a file that is gone."""
    seeded = random.Random(1)
    code = (
        f"import sys; sys.path[:0] = {[str(HERE.parents[2]), str(HERE.parents[1])]!r}\n"
        "from pathlib import Path\nfrom reuse.test_disk import write_for_ever\n"
        "write_for_ever(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    engine, served = engine_with("delta net and attention"), 0
    for kill in range(50):
        call = [sys.executable, "-c", code, str(tmp_path), str(kill)]
        process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(seeded.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with stored(engine, tmp_path) as kept:
                for seed in range(3):
                    prompt = [*prompt_of(10, seed=seed), *prompt_of(3, seed=seed)]
                    made = run(kept, prompt, 6)
                    served += made[0].cached_tokens > 0
                    if kill % 10 == 0:
                        same(made, run(cold(engine), prompt, 6))
    assert served > 50
    engine.target.close()
