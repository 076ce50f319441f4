"""Tokenizers converted from GGUF: the same ids and the same text as the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from helpers.gguf_writer import VOCAB, metadata
from mlx_lm.utils import load_tokenizer

from dspark_mlx.convert.gguf.tokenizer import PRE_TOKENIZERS, token_ids, write_tokenizer


def tokenizer_of(tmp_path: Path, **changes: Any) -> Any:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(metadata(**changes), folder, Path("m.gguf"), VOCAB)
    return load_tokenizer(folder)


TEXTS = [
    "hello hello",
    "  two  spaces",
    "é ¿ 漢字 🙂",
    "tabs\tand\nlines\n\n",
    "it's 123.45",
    "<s>",
]


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_texts_survive_a_round_trip(tmp_path: Path, pre: str) -> None:
    tokenizer = tokenizer_of(tmp_path, **{"tokenizer.ggml.pre": pre})
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        stream = tokenizer.detokenizer
        for token in ids:
            stream.add_token(token)
        stream.finalize()
        assert stream.text == text.removeprefix(" ")  # mlx-lm drops one leading space
    assert type(tokenizer.detokenizer).__name__ == "BPEStreamingDetokenizer"


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "1234 hello", ["123", "4", "Ġhello"]),
        ("default", "1234", ["123", "4"]),
        ("smollm", "1234 hello", ["1", "2", "3", "4", "Ġhello"]),
        ("smollm", " 12", ["Ġ", "1", "2"]),
        ("gpt-2", "1234123", ["123", "4", "123"]),
        ("llama-bpe", "1234123", ["123", "4", "12", "3"]),
        ("llama-bpe", "hello yes", ["hello", "Ġyes"]),  # a token that no merge makes
        ("qwen2", "12 yes", ["1", "2", "Ġ", "y", "e", "s"]),
        ("qwen2", "e\u0301", ["Ã©"]),  # composed first
        ("gpt-2", "e\u0301", ["e", "Ì", "ģ"]),
    ],
)
def test_each_pre_tokenizer_cuts_its_own_way(
    tmp_path: Path, pre: str, text: str, pieces: list[str]
) -> None:
    tokenizer = tokenizer_of(tmp_path, **{"tokenizer.ggml.pre": pre})
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.convert_ids_to_tokens(ids) == pieces


def test_special_tokens_and_the_chat_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path)
    named = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    assert (*named, tokenizer.unk_token_id) == (1, 2, 2, 0)
    assert tokenizer.eos_token_ids == {2}
    assert len(tokenizer) == VOCAB
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello<think>"}], add_generation_prompt=True
    )
    assert [i for i in ids if i < 4] == [1, 3, 2, 1]
    # CONTROL tokens are special, USER_DEFINED tokens are text.
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nhello<think>\nassistant\n"
    expected = "<|im_start|>user\nhello<think><|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids) == expected


@pytest.mark.parametrize(
    ("changes", "starts", "ends"),
    [
        ({}, False, False),
        ({"add_bos_token": True}, True, False),
        ({"add_bos_token": True, "add_eos_token": True}, True, True),
        ({"add_bos_token": None, "pre": "llama-bpe"}, True, False),  # as llama.cpp defaults
        ({"add_bos_token": None}, False, False),
    ],
)
def test_bos_and_eos_are_added_as_the_file_says(
    tmp_path: Path, changes: dict[str, Any], starts: bool, ends: bool
) -> None:
    renamed = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    ids = tokenizer_of(tmp_path, **renamed).encode("hello")
    assert ((ids[0] == 1), (ids[-1] == 2)) == (starts, ends)


def test_sentencepiece_vocabularies_encode_as_sentencepiece_does(tmp_path: Path) -> None:
    """The reference is SentencePiece itself, trained here on a few lines."""
    corpus = tmp_path / "corpus.txt"
    words = ["the river runs", "a runner ran there", "rivers are running", "then there were three"]
    corpus.write_text("\n".join(words * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "spm"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    size = reference.vocab_size()
    kinds = [(reference.is_unknown, 2), (reference.is_control, 3), (reference.is_byte, 6)]
    changes = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [reference.id_to_piece(i) for i in range(size)],
        "tokenizer.ggml.scores": [reference.get_score(i) for i in range(size)],
        "tokenizer.ggml.token_type": [
            next((kind for test, kind in kinds if test(i)), 1) for i in range(size)
        ],
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.add_bos_token": None,
        "tokenizer.ggml.padding_token_id": None,
    }
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(metadata(**changes), folder, Path("m.gguf"), size)
    tokenizer = load_tokenizer(folder)
    for text in ["the runner", "rivers  there", "where? 漢字 é", " three", "<0x0A>\n", "ran\nthen"]:
        ids = tokenizer.encode(text)
        assert ids[0] == reference.bos_id() == 1
        assert ids[1:] == reference.encode(text), text
        assert tokenizer.decode(ids[1:]) == text
    assert type(tokenizer.detokenizer).__name__ == "SPMStreamingDetokenizer"


def test_end_tokens_are_listed_once() -> None:
    ids = {f"tokenizer.ggml.{name}_token_id": i for name, i in [("eos", 2), ("eot", 2), ("eom", 5)]}
    assert token_ids(ids, Path("m.gguf"), 10) == {"eos_token_id": [2, 5]}
