"""A tiny target that writes a known text: every token of its vocabulary has one that follows it.

What an answer says depends on the last token of the prompt, which the chat template chooses by the
request's tools and thinking.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dspark_mlx.decoder import Decoder
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.serving.admission import Admission
from dspark_mlx.targets.tap import Target
from helpers.tiny_models import tiny
from helpers.toys import HIDDEN, engine_of, example_config

END, PLAIN, THINK, TOOLS, BROKEN = "<end>", "<plain>", "<thinking>", "<tools>", "<broken>"
CONTENT = ("Hel", "lo, ", "wor", "ld", "! ", "Bye", ".")
REASONING = ("<think>", "\nLet me", " see", "</think>", "\n\n", "Hel")
CALL = ("<tool_call>", ' {"name": "weather", ', '"arguments": {"city": ', '"Par', 'is"}}')
UNREADABLE = ("<tool_call> ", '{"name": ', "</tool_call> ")
CHAINS = (
    (PLAIN, *CONTENT, END),
    (THINK, *REASONING),
    (TOOLS, "I look.", *CALL, "</tool_call>", END),
    (BROKEN, "I try.", *UNREADABLE, END),
)
TEXT = "".join(CONTENT)
# Roles and text become tokens of single characters; the answer hangs on the last one.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + (m['content'] or '') + '\n' }}"
    "{% if m['tool_calls'] %}{% for c in m['tool_calls'] %}{{ c['function']['name'] }}"
    "{{ c['function']['arguments'] | tojson }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{% if broken %}" + BROKEN + "{% elif tools %}" + TOOLS
    + "{% elif enable_thinking %}" + THINK + "{% else %}" + PLAIN + "{% endif %}{% endif %}"
)  # fmt: skip


def served_folder(folder: Path) -> Path:
    """Tokenizer files of the target, which mlx-lm finds markers of reasoning and tool calls in."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    words = dict.fromkeys(word for chain in CHAINS for word in chain if len(word) > 1)
    raw.add_special_tokens([AddedToken(w, normalized=False) for w in words if w.startswith("<")])
    raw.add_tokens([AddedToken(w, normalized=False) for w in words if not w.startswith("<")])
    raw.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "chat_template": TEMPLATE,
        "tool_parser_type": "json_tools",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return folder


def served_decoder(
    folder: Path, positions: int = 512, admission: Admission | None = None
) -> Decoder:
    """The target with a drafter that knows which token follows which, but not the context.

    Args:
        folder: where the tokenizer's files are written.
        positions: what config.json says that the target was made for.
        admission: gives requests their memory; None for the machine's.
    """
    served_folder(folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(vocabulary["model"]["vocab"])
    ids |= {token["content"]: token["id"] for token in vocabulary["added_tokens"]}
    rng = np.random.default_rng(5)
    embedding = rng.standard_normal((len(ids), HIDDEN)).astype(np.float32)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    head = np.zeros_like(embedding)
    for chain in CHAINS:
        for token, following in pairwise(chain):
            head[ids[following]] += embedding[ids[token]]
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "vocab_size": len(ids)}
    model = tiny("llama", seed=3, intermediate_size=32, num_attention_heads=2, **sizes)
    model.model.embed_tokens.weight = mx.array(embedding)
    # Over random logits, which decide where a token has no follower or the temperature is high.
    model.lm_head.weight = 0.3 * model.lm_head.weight + 4 * mx.array(head)
    for layer in model.layers:
        layer.self_attn.o_proj.weight *= 0.05
        layer.mlp.down_proj.weight *= 0.05
    mx.eval(model.parameters())
    target = Target(model, (-1, 0), "served toy")

    def knows_followers(tensors: dict[str, mx.array]) -> None:
        tensors["markov_head.markov_w1.weight"] = mx.array(embedding)
        tensors["markov_head.markov_w2.weight"] = 20 * mx.array(head)

    own = {"block_size": 4, "head": "vanilla", "head_rank": HIDDEN, "confidence": "hidden+markov"}
    config = example_config(target, "dspark", **own)
    engine = engine_of(target, FullScheduler(), config, knows_followers)
    end = ids[END]
    said = {"eos_token_id": end, "max_position_embeddings": positions}
    return Decoder(engine, folder, said, admission=admission)
