"""The golden target with a tokenizer of made-up words, so that its token ids can be typed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.pairs import TARGET

END = 1
TEMPLATE = (
    "{% if enable_thinking %}w9 {% endif %}"
    "{% for message in messages %}{{ message['content'] }} {% endfor %}"
)


def words(tokens: Iterable[int]) -> str:
    """The text of token ids."""
    return " ".join(_word(token) for token in tokens)


def worded_target(folder: Path, **config: object) -> Path:
    """A copy of the golden target that takes text; `config` changes its configuration."""
    shutil.copytree(TARGET, folder)
    size = json.loads((TARGET / "config.json").read_text())["vocab_size"]
    raw = Tokenizer(models.WordLevel({_word(i): i for i in range(size)}, unk_token="w0"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=_word(END), chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": END} | config))
    return folder


def _word(token: int) -> str:
    # The end token is found inside words too.
    return "<end>" if token == END else f"w{token}"


def write_task(path: Path, conversations: Iterable[Iterable[Iterable[int]]]) -> Path:
    """A task's file: of each conversation, the token ids of its turns."""
    lines = [{"turns": [words(turn) for turn in turns], "id": 7} for turns in conversations]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
