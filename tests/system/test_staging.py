"""Outputs that appear whole or not at all, though processes are killed, disks full, and two runs
begin at once."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import threading
from pathlib import Path

import mlx.core as mx
import pytest
from helpers import bare
from helpers.pairs import checkpoint

from dspark_mlx.checkpoint.hub import resolve
from dspark_mlx.checkpoint.tensor_writer import write_tensors
from dspark_mlx.convert.drafter import convert_drafter
from dspark_mlx.errors import InputError
from dspark_mlx.system.files import write_bytes, write_text
from dspark_mlx.system.locks import take_turns
from dspark_mlx.system.staging import made_once, scratch_folder, staged_folder

IMPORTS = """
from pathlib import Path
from dspark_mlx.system.files import write_text
from dspark_mlx.system.staging import made_once, scratch_folder, staged_folder
path = Path(sys.argv[1])
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""
AT_WORK = """
with staged_folder(path, overwrite=True) as staged:
    (staged / "file").write_text("new")
"""
WAITS = '    print("ready", flush=True)\n    sys.stdin.read()\n'


def killed(script: str, path: Path) -> None:
    """Run a script that kills itself."""
    assert bare.run(IMPORTS + script, str(path)).returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    """Half of a large model, once for every kill."""
    killed(AT_WORK + "    kill()\n", tmp_path / "out")
    killed(AT_WORK + "    kill()\n", tmp_path / "out")
    assert len(names(tmp_path)) == 2  # one of them, and the lock, which nobody holds
    with staged_folder(tmp_path / "out") as staged:
        (staged / "file").write_text("whole")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("then", ["read", "write"])
def test_a_kill_while_an_output_is_replaced_loses_nothing(tmp_path, then):
    """The old folder moved away, the new one not there yet: neither of the two to be found."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("old")
    moves = "rename = Path.rename\nPath.rename = lambda a, b: kill() if b == path else rename(a, b)"
    killed(moves + AT_WORK, out)
    assert not out.exists()
    if then == "read":
        assert (resolve(out) / "file").read_text() == "old"
    else:
        with pytest.raises(InputError, match="non-empty folder"), staged_folder(out):
            pass
    assert names(tmp_path) == ["out"] and (out / "file").read_text() == "old"


def test_what_is_still_written_is_left_alone(tmp_path):
    """Another run's work removed under its hands."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = bare.start(IMPORTS + AT_WORK + WAITS, str(tmp_path / "one"), **pipes)
    other.stdout.readline()
    killed(AT_WORK + "    kill()\n", tmp_path / "two")
    made = made_once(tmp_path / "three", lambda folder: folder.mkdir())
    assert made == tmp_path / "three"
    left = [name for name in names(tmp_path) if name.startswith(".")]
    assert len(left) == 2 and all(name.startswith(".one.") for name in left)
    other.communicate(b"")
    assert names(tmp_path) == ["one", "three"]


@pytest.mark.slow
def test_two_first_runs_at_once(tmp_path):
    """93 MB fetched twice, and the second that fails with "found an existing file"."""
    script = """
import time
def make(folder):
    with scratch_folder(folder) as scratch, staged_folder(folder) as staged:
        print("made", flush=True)
        time.sleep(1.3)
        (staged / "file").write_text("whole")
made_once(path, make)
print((path / "file").read_text())
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [bare.start(IMPORTS + script, str(tmp_path / "c" / "out"), **pipes) for _ in range(2)]
    said = [each.communicate(timeout=60) for each in both]
    assert sorted(out for out, _ in said) == [b"made\nwhole\n", b"whole\n"]
    waited = f"{tmp_path}/c/out: waiting for another process that writes it\n".encode()
    assert sorted(error for _, error in said) == [b"", waited]
    assert names(tmp_path / "c") == ["out"]


def test_a_killed_first_run_does_not_stop_the_second(tmp_path):
    """A lock that outlives its process."""
    script = """
def make(folder):
    with scratch_folder(folder) as scratch:
        (scratch / "wheel").write_text("half")
        kill()
made_once(path, make)
"""
    killed(script, tmp_path / "out")
    with scratch_folder(tmp_path / "out") as scratch:
        assert not any(scratch.iterdir())
    made_once(tmp_path / "out", lambda folder: folder.mkdir())
    assert names(tmp_path) == ["out"]


def test_threads_take_turns(tmp_path):
    """A lock that a process holds once for all of its threads."""
    made = []

    def make(folder: Path) -> None:
        with staged_folder(folder):
            made.append(folder)

    threads = [threading.Thread(target=made_once, args=(tmp_path / "o", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [tmp_path / "o"] and names(tmp_path) == ["o"]


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    """A refusal to work on a network's disk, or files for locks that stay there."""

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    for wait in (True, False):
        with take_turns(tmp_path / "out", wait=wait) as held:
            assert not held
    with staged_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]


def test_folders_made_for_an_output_go_with_it(tmp_path):
    """Empty folders left by an output that was never there."""
    with pytest.raises(KeyError), staged_folder(tmp_path / "a" / "b" / "out"):
        raise KeyError
    assert names(tmp_path) == []


@pytest.mark.parametrize("folder", [staged_folder, scratch_folder])
@pytest.mark.parametrize("error", [RuntimeError("[write] Unable to write"), OSError("source")])
def test_what_fails_on_a_full_disk_fails_for_that(tmp_path, monkeypatch, error, folder):
    """A checkpoint blamed by the library that read it."""

    class Full:
        def __enter__(self):
            raise OSError(28, "No space left on device")

        def __exit__(self, *_):
            pass

    expected = rf"{tmp_path}/out: found no space left on the disk at / \([\d.]+ MB free\)"
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == "/")
    with pytest.raises(InputError, match=expected), folder(tmp_path / "out") as staged:
        whole = Path.open
        monkeypatch.setattr(
            "pathlib.Path.open", lambda p, *a: Full() if p.parent == staged else whole(p, *a)
        )
        raise error
    assert names(tmp_path) == []


def test_tensors_that_do_not_fit_name_the_file(tmp_path):
    """ "[write] Unable to write 7221 bytes to file.", from a library that nobody asked."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    source, out = checkpoint("vanilla", tmp_path / "source"), tmp_path / "out"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, before[1]))
        with pytest.raises(InputError, match=r"x\.safetensors: found File too large"):
            write_tensors(tmp_path / "x.safetensors", {"a": mx.zeros((100, 100))})
        with pytest.raises(InputError, match=f"{out}.*found File too large; expected a smaller"):
            convert_drafter(source, out, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    (tmp_path / "x.safetensors").unlink()
    assert names(tmp_path) == ["source"]


def test_files_are_whole_and_what_was_left_is_removed(tmp_path):
    """Half a file, or the halves of killed runs for ever."""
    path = tmp_path / "file.json"
    write_text(path, "old")
    killed("Path.replace = kill\nwrite_text(path, 'new')\n", path)
    assert path.read_text() == "old" and len(names(tmp_path)) == 3
    write_text(path, "new")
    assert path.read_text() == "new" and names(tmp_path) == ["file.json"]


def test_devices_pipes_and_links_stay_what_they_are(tmp_path):
    """/dev/null replaced by a file; a link by what was to be written where it leads."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("file")
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    read: list[bytes] = []
    reader.start()
    write_bytes(pipe, b"a")
    reader.join()
    write_bytes(link, b"b")
    assert read == [b"a"] and pipe.is_fifo()
    assert link.is_symlink() and (tmp_path / "file").read_bytes() == b"b"
    with pytest.raises(InputError, match=f"{tmp_path}: found Is a directory"):
        write_bytes(tmp_path, b"c")
    with pytest.raises(InputError, match="none/file: found No such file"):
        write_bytes(tmp_path / "none" / "file", b"c")
    assert names(tmp_path) == ["file", "link", "pipe"]


def test_a_link_as_an_output(tmp_path):
    """A folder that cannot take the name of a link."""
    (tmp_path / "link").symlink_to("folder")
    with staged_folder(tmp_path / "link") as staged:
        (staged / "file").write_text("x")
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "folder") == ["file"]
