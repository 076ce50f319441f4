"""The store of conversations: what is read is what was written, or a clear error."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dspark_mlx.errors import InputError
from dspark_mlx.train.data.corpus import KEYS, Conversation
from dspark_mlx.train.data.store import Header, Store, load_all

HEADER = Header(300, "toy", "abc", 7, {"share": 0.5, "temperatures": [[0.0, 1]]})


def some(count, seed=0, vocab=300):
    rng = np.random.default_rng(seed)
    return [
        Conversation(
            rng.integers(vocab, size=length),
            rng.random(length) < 0.5,
            rng.integers(1 << 60, size=KEYS, dtype=np.uint64),
        )
        for length in rng.integers(1, 30, size=count)
    ]


def assert_equal(corpus, conversations):
    assert len(corpus) == len(conversations)
    for read, written in zip(corpus, conversations, strict=True):
        np.testing.assert_array_equal(read.tokens, written.tokens)
        np.testing.assert_array_equal(read.answer, written.answer)


@pytest.mark.parametrize(("vocab", "kind"), [(65_536, np.uint16), (65_537, np.uint32)])
def test_what_is_read_is_what_was_written(tmp_path, vocab, kind):
    """Masks shifted by the packed bits of a neighbour, ids cut to 16 bits, lost order or keys."""
    store = Store.create(tmp_path / "s", Header(vocab, "toy", "abc", 0, {}))
    first, second = some(5, 1, vocab), some(3, 2, vocab)
    first[0].tokens[0] = vocab - 1
    for shard in (first, [], second):
        store.append(shard)
    again = Store.open(tmp_path / "s")
    every = first + second
    for read in (store, again):
        corpus = load_all(read)
        assert corpus.tokens.dtype == kind
        assert_equal(corpus, every)
        np.testing.assert_array_equal(corpus.lengths, [len(c.tokens) for c in every])
        np.testing.assert_array_equal(read.keys(), [c.keys for c in every])
        assert (read.shards, read.conversations) == (3, 8)
        assert read.tokens == len(corpus.tokens)
        assert read.answer_tokens == corpus.answer.sum()
    np.testing.assert_array_equal(corpus[-1].tokens, every[-1].tokens)
    with pytest.raises(IndexError):
        corpus[8]


def test_an_empty_store(tmp_path):
    """A corpus without a first offset."""
    store = Store.create(tmp_path / "s", HEADER)
    assert len(load_all(store)) == 0 and len(load_all(store).offsets) == 1
    assert store.keys().shape == (0, KEYS)
    assert Store.open(tmp_path / "s").shards == 0


def test_a_store_goes_on(tmp_path):
    """A resumed run that begins anew, or overwrites a shard."""
    Store.obtain(tmp_path / "s", HEADER).append(some(2, 1))
    store = Store.obtain(tmp_path / "s", HEADER)
    assert store.shards == 1
    store.append(some(3, 2))
    assert_equal(load_all(Store.open(tmp_path / "s")), some(2, 1) + some(3, 2))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 8}, "seed 7"),
        ({"vocab_size": 301}, "vocab_size 300"),
        ({"fingerprint": "abd"}, "fingerprint 'abc'"),
        ({"settings": {"share": 0.25, "temperatures": [[0.0, 1]]}}, "share 0.5"),
    ],
)
def test_another_run_is_refused(tmp_path, change, named):
    """Conversations of two targets or settings in one store."""
    Store.create(tmp_path / "s", HEADER)
    other = Header(**{**vars(HEADER), **change})
    with pytest.raises(InputError, match=named):
        Store.obtain(tmp_path / "s", other)
    with pytest.raises(InputError, match="non-empty"):
        Store.create(tmp_path / "s", other)


def edit_header(folder, **change):
    data = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps(data | change))


def edit_shard(folder, **change):
    path = folder / "shard-00001.safetensors"
    save_file(load_file(path) | change, path)


DAMAGE = {
    "no store": lambda f: (f / "store.json").unlink(),
    "format": lambda f: edit_header(f, format="other"),
    "version": lambda f: edit_header(f, format_version=2),
    "seed": lambda f: edit_header(f, seed="7"),
    "cut off": lambda f: (f / "shard-00001.safetensors").write_bytes(
        (f / "shard-00001.safetensors").read_bytes()[:-3]
    ),
    "missing shard": lambda f: (f / "shard-00000.safetensors").unlink(),
    "lengths": lambda f: edit_shard(f, lengths=np.array([1, 1], dtype=np.int32)),
    "zero length": lambda f: edit_shard(f, lengths=np.array([0, 0], dtype=np.int32)),
    "mask": lambda f: edit_shard(f, answer=np.zeros(1, dtype=np.uint8)),
    "token": lambda f: edit_shard(f, tokens=load_shard(f) + np.uint16(300)),
    "type": lambda f: edit_shard(f, tokens=load_shard(f).astype(np.float32)),
    "keys": lambda f: edit_shard(f, keys=np.zeros((1, KEYS), dtype=np.uint64)),
    "extra tensor": lambda f: edit_shard(f, more=np.zeros(1, dtype=np.uint8)),
}


def load_shard(folder):
    return load_file(folder / "shard-00001.safetensors")["tokens"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_store_is_refused(tmp_path, damage):
    """Training on half a store, or a traceback out of a library."""
    store = Store.create(tmp_path / "s", HEADER)
    store.append(some(4, 1))
    store.append(some(4, 2))
    DAMAGE[damage](tmp_path / "s")
    with pytest.raises(InputError):
        Store.open(tmp_path / "s")


def test_nothing_unusable_is_written(tmp_path):
    """A store that its own `open` refuses; a shard half written when the disk is full."""
    store = Store.create(tmp_path / "s", HEADER)
    one = some(1)[0]
    bad = [
        Conversation(one.tokens[:0], one.answer[:0]),
        Conversation(one.tokens, np.append(one.answer, True)),
        Conversation(one.tokens + 300, one.answer),
    ]
    for conversation in bad:
        with pytest.raises(InputError, match="conversation"):
            store.append([one, conversation])
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["store.json"]


def test_a_full_disk(tmp_path, monkeypatch):
    """A traceback, or a partial file that the next run reads."""
    store = Store.create(tmp_path / "s", HEADER)

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match="no space left on the disk"):
        store.append(some(2))
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["store.json"]
    assert store.shards == 0


def test_a_file_where_the_folder_should_be(tmp_path):
    """A traceback from mkdir."""
    (tmp_path / "s").write_text("x")
    with pytest.raises(InputError):
        Store.obtain(tmp_path / "s", HEADER)
    with pytest.raises(InputError):
        Store.obtain(tmp_path / "s" / "below", HEADER)


def test_stores_of_one_target_are_joined(tmp_path):
    """A text that two machines wrote learnt twice, masks or lengths of what is left out kept."""
    first, second = some(9, 1), some(9, 2)
    stores = []
    for name, shards in (
        ("a", (first[:4], first[4:])),
        ("b", ([*second[:3], first[2]], second[3:])),
    ):
        stores.append(Store.create(tmp_path / name, HEADER))
        for shard in shards:
            stores[-1].append(shard)
    assert_equal(load_all(stores[0], stores[1:]), first + second)
    assert_equal(
        load_all(stores[1], stores[:1]),
        [*second[:3], first[2], *second[3:], *first[:2], *first[3:]],
    )
    other = Store.create(tmp_path / "c", dataclasses.replace(HEADER, fingerprint="def"))
    with pytest.raises(InputError, match=r"c: found conversations of toy def; expected of toy abc"):
        load_all(stores[0], [other])
