"""A tiny chat model of 64 characters: a tokenizer, a chat template and random weights."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.state import Engine
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.tap import Target
from helpers.tiny_models import VOCAB, tiny

TEMPLATE = (
    "{% for m in messages %}{{ ('/' if m['role'] == 'user' else '|') + m['content'] + '~' }}"
    "{% endfor %}{% if add_generation_prompt %}|{% endif %}"
)
# Earlier answers lose their first three characters, as thinking is lost in larger templates.
THINKING = (
    "{% for m in messages %}{{ '/' + m['content'] if m['role'] == 'user' else "
    "'|' + m['content'][3:] }}~{% endfor %}{% if add_generation_prompt %}|"
    "{% if enable_thinking %}t{% else %}n{% endif %}{% endif %}"
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ 0123.,?!"
SPECIAL = ("~", "/", "|")
END, USER, ANSWER = range(3)
LENGTH = 160


def chat_folder(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Tokenizer files of the toy, and weights of nothing, which only a fingerprint reads."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [*SPECIAL, *CHARACTERS.replace(" ", "Ġ")]
    assert len(vocabulary) == VOCAB
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIAL))
    raw.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "~"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def chat_decoder(folder: Path, template: str | None = TEMPLATE) -> Decoder:
    """The toy as `load` would give it, without a drafter."""
    chat_folder(folder, template)
    model = tiny("llama")
    # More often an end than other tokens, so that most texts are whole.
    model.lm_head.weight[END] *= 1.5
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = {"eos_token_id": END, "max_position_embeddings": LENGTH}
    return Decoder(Engine(Target(model, (0,), "toy"), None, FullScheduler()), folder, config)
