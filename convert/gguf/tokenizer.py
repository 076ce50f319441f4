"""Rebuilds the files of a Hugging Face tokenizer from the metadata of a GGUF file.

It knows byte-level BPE ("gpt2" in the file) with the pre-tokenizers in `PRE_TOKENIZERS`, and
SentencePiece BPE ("llama"). Everything comes from the file; nothing is downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split
from tqdm import tqdm

from ...errors import InputError
from ...system.files import write_json

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
_SPACE = "▁"  # how SentencePiece writes a space
# The patterns in the tokenizer.json of Llama 3 and of Qwen 2; they differ in how they cut numbers.
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def _gpt2() -> PreTokenizer:
    return ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _by_pattern(pattern: str) -> Callable[[], PreTokenizer]:
    def build() -> PreTokenizer:
        split = Split(Regex(pattern), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])

    return build


# Value of tokenizer.ggml.pre -> function that builds the pre-tokenizer.
PRE_TOKENIZERS: dict[str, Callable[[], PreTokenizer]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "llama-bpe": _by_pattern(_LLAMA3_SPLIT),
    "qwen2": _by_pattern(_QWEN2_SPLIT),
    "smollm": _smollm,
}


def write_tokenizer(metadata: dict[str, Any], folder: Path, where: Path, vocab_size: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`.

    Args:
        metadata: the GGUF file's metadata, see `header.read_header`.
        folder: an existing folder to write into.
        where: the GGUF file, for error messages.
        vocab_size: rows of the model's embedding.

    Raises:
        InputError: the kind of tokenizer or the pre-tokenizer is unknown, or the vocabulary
            contradicts itself.
    """
    tokens = _listed(metadata, "tokens", str, where)
    types = _listed(metadata, "token_type", int, where) or [_NORMAL] * len(tokens)
    if {len(tokens), len(set(tokens)), len(types)} != {vocab_size}:
        found = f"{len(tokens)} tokens ({len(set(tokens))} different), {len(types)} token types"
        raise InputError(where, found, f"{vocab_size} different tokens, each with a type")
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level_bpe(metadata, tokens, where)
    elif kind == "llama":
        tokenizer = _sentencepiece_bpe(metadata, tokens, types, where)
    else:
        raise InputError(where, f"tokenizer.ggml.model {kind!r}", "'gpt2' or 'llama'")
    added = [
        AddedToken(token, special=type_ != _USER_DEFINED, normalized=False)
        for token, type_ in zip(tokens, types, strict=True)
        if type_ in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    ids = {name: _token_id(metadata, name, where, len(tokens)) for name in _NAMED}
    named = {f"{_NAMED[name]}_token": tokens[i] for name, i in ids.items() if i is not None}
    _add_bos_eos(tokenizer, metadata, named, where)

    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    settings["clean_up_tokenization_spaces"] = False
    if length := metadata.get(f"{metadata.get('general.architecture')}.context_length"):
        settings["model_max_length"] = length
    write_json(folder / "tokenizer_config.json", settings)
    if template := metadata.get("tokenizer.chat_template"):
        if not isinstance(template, str):
            raise InputError(where, f"tokenizer.chat_template {template!r:.40}", "a text")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


_NAMED = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}


def token_ids(metadata: dict[str, Any], where: Path, vocab_size: int) -> dict[str, Any]:
    """The `bos_token_id`, `eos_token_id` and `pad_token_id` entries of a config.

    A chat model may end its turn with other tokens than a text ("eot", "eom"). Then `eos_token_id`
    lists all of them, and generation stops at each.

    Raises:
        InputError: an id is outside the vocabulary.
    """
    names = ("bos", "padding", "eos", "eot", "eom")
    ids = {name: _token_id(metadata, name, where, vocab_size) for name in names}
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    ends = list(dict.fromkeys(ends))
    entries = {"bos_token_id": ids["bos"], "pad_token_id": ids["padding"]}
    config: dict[str, Any] = {key: value for key, value in entries.items() if value is not None}
    if ends:
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return config


_NO_ID = (-1, 2**32 - 1)  # llama.cpp's value for "no token", signed or unsigned


def _token_id(metadata: dict[str, Any], name: str, where: Path, size: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}_token_id")
    if type(value) is int and value in _NO_ID:
        return None
    if value is not None and (type(value) is not int or not 0 <= value < size):
        raise InputError(where, f"{name} token {value!r}", f"an id from 0 to {size - 1}")
    return value


def _listed(metadata: dict[str, Any], name: str, kind: type, where: Path) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{name}", [])
    if kind is float and isinstance(values, list):
        values = [float(value) if type(value) is int else value for value in values]
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise InputError(where, f"other values in tokenizer.ggml.{name}", f"{kind.__name__} values")
    return values


def _byte_level_bpe(metadata: dict[str, Any], tokens: list[str], where: Path) -> Tokenizer:
    # Older files lack the key: llama.cpp also reads them as "default", with a warning.
    name = metadata.get("tokenizer.ggml.pre", "default")
    if "tokenizer.ggml.pre" not in metadata:
        warning = f"{where}: no tokenizer.ggml.pre; words are cut as by 'default', GPT-2's way"
        tqdm.write(warning, file=sys.stderr)
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise InputError(
            where, f"the pre-tokenizer {name!r} (tokenizer.ggml.pre)", f"one of {known}"
        )
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = []
    for merge in _listed(metadata, "merges", str, where):
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise InputError(where, f"the merge {merge!r}", "two tokens whose union is a token")
        merges.append((left, right))
    if not merges:
        raise InputError(where, "no tokenizer.ggml.merges", "the merges of a BPE")
    # Llama 3 takes a word that is a token as it is, without merges.
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=name == "llama-bpe"))
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[name]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(
    metadata: dict[str, Any], tokens: list[str], types: list[int], where: Path
) -> Tokenizer:
    scores = _listed(metadata, "scores", float, where)
    if len(scores) != len(tokens) or "tokenizer.ggml.precompiled_charsmap" in metadata:
        found = f"{len(scores)} scores, or a table of characters to replace"
        raise InputError(where, found, f"{len(tokens)} scores and no such table")
    vocab = {token: index for index, token in enumerate(tokens)}
    pieces = {vocab[token] for token, type_ in zip(tokens, types, strict=True) if type_ == _NORMAL}
    # SentencePiece joins the neighbours whose union has the highest score; merges in the order of
    # scores do the same.
    merges: list[tuple[str, str]] = []
    for index in sorted(pieces, key=lambda index: -scores[index]):
        token = tokens[index]
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += [pair for pair in pairs if all(vocab.get(part) in pieces for part in pair)]
    unknown = _token_id(metadata, "unknown", where, len(tokens))
    model = models.BPE(
        vocab,
        merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=_BYTE in types,
    )
    tokenizer = Tokenizer(model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    texts: list[decoders.Decoder] = [
        decoders.Replace(_SPACE, " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        # llama.cpp also adds the space after a special token.
        spaces.insert(0, normalizers.Prepend(_SPACE))
        texts.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(spaces)
    tokenizer.decoder = decoders.Sequence(texts)
    return tokenizer


def _add_bos_eos(
    tokenizer: Tokenizer, metadata: dict[str, Any], named: dict[str, str], where: Path
) -> None:
    """Make the tokenizer add the tokens before and after a text that the file asks for."""
    kind, pre = (metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    # The defaults for files that do not say are llama.cpp's.
    starts = kind == "llama" or pre == "llama-bpe"
    first = metadata.get("tokenizer.ggml.add_bos_token", starts)
    last = metadata.get("tokenizer.ggml.add_eos_token", False)
    for name, asked in (("bos_token", first), ("eos_token", last)):
        if asked and name not in named:
            raise InputError(where, f"texts that need a {name}, and no id for it", "an id")
    before = [named["bos_token"]] if first else []
    after = [named["eos_token"]] if last else []
    if before or after:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*before, "$A", *after],
            pair=[*before, "$A", *after, *before, "$B", *after],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in before + after],
        )
