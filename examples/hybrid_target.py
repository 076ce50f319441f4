"""A small hybrid target: gated delta nets and attention, taught to read and to confirm orders.

    python examples/hybrid_target.py --to hybrid

makes a Qwen3.5 of 8 layers (3 of 4 are gated delta nets) with a tokenizer and a chat template, and
trains it in some minutes on a CPU, so that there is a target with recurrent states to try things
on. Beside it, `prompts.jsonl` has orders to learn a drafter from, and `held-out.jsonl` has others
to judge it on.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from extraction_prompts import (  # type: ignore[import-not-found]  # beside this script
    CITIES,
    COLOURS,
    FIRST,
    FORMS,
    ITEMS,
    LAST,
    MONTHS,
)
from mlx.optimizers import AdamW, clip_grad_norm, cosine_decay, join_schedules, linear_schedule
from mlx.utils import tree_flatten
from mlx_lm.models.qwen3_5 import Model, ModelArgs
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
VOCABULARY = 2048
_ANSWER = SPECIAL.index("<|assistant|>")
_WARMUP = 20
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXT_CONFIG = {
    "model_type": "qwen3_5_text",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "full_attention_interval": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}
CONFIG = {"model_type": "qwen3_5", "eos_token_id": 0, "text_config": TEXT_CONFIG}

TASKS = {
    "Extract the order as JSON.": '{{"name": "{name}", "city": "{city}", "item": "{item}", '
    '"colour": "{colour}", "count": {count}, "price": {price}, "date": "{date}"}}',
    "Repeat the order.": "{order}",
    "Confirm the order.": "Dear {name}, thank you for your order of {date}. We send {count} "
    "{colour} {item}s to {city} as soon as they are packed. The sum is ${price}.",
}


def orders(count: int, seed: int) -> Iterator[tuple[str, str]]:
    """Prompts and their answers."""
    rng = random.Random(seed)
    first, last, cities, items = (words.split() for words in (FIRST, LAST, CITIES, ITEMS))
    for _ in range(count):
        values = {
            "name": f"{rng.choice(first)} {rng.choice(last)}",
            "city": rng.choice(cities),
            "item": rng.choice(items),
            "colour": rng.choice(COLOURS.split()),
            "count": rng.randint(2, 60),
            "price": rng.randint(20, 900),
            "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS.split())} 2026",
        }
        task = rng.choice(list(TASKS))
        order = rng.choice(FORMS).format(**values)
        yield f"{task}\n\n{order}", TASKS[task].format(order=order, **values)


def make_tokenizer(folder: Path, texts: list[str]) -> Tokenizer:
    """A byte-level BPE of the texts, written as transformers reads it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    # One id is left for the mask of a drafter's blocks.
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL[0],
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def train(model: Model, texts: list[list[int]], steps: int, rows: int, rate: float) -> None:
    """Teach a model to answer as the texts do, each of which is read once."""
    warmup = linear_schedule(1e-7, rate, _WARMUP)
    schedule = join_schedules([warmup, cosine_decay(rate, steps, rate / 20)], [_WARMUP])
    optimizer = AdamW(learning_rate=schedule, betas=[0.9, 0.95], weight_decay=0.01)
    loss_and_grad = nn.value_and_grad(model, _loss)
    losses: list[float] = []
    begun = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        batch = texts[(step - 1) * rows : step * rows]
        tokens = np.zeros((rows, max(map(len, batch))), dtype=np.int32)
        for row, text in zip(tokens, batch, strict=True):
            row[: len(text)] = text
        lengths = mx.array([len(text) for text in batch])
        loss, gradients = loss_and_grad(model, mx.array(tokens), lengths)
        gradients, _ = clip_grad_norm(gradients, 1.0)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
        if step % 20 == 0:
            seconds = time.perf_counter() - begun
            print(f"step {step}: loss {np.mean(losses[-20:]):.3f}, {seconds:.0f} s", flush=True)
    model.eval()


def _loss(model: Model, tokens: mx.array, lengths: mx.array) -> mx.array:
    logits = model(tokens[:, :-1])
    real = mx.arange(1, tokens.shape[1]) < lengths[:, None]
    # Answers only: what is in an order follows from nothing.
    real = real & (mx.cumsum(tokens[:, :-1] == _ANSWER, axis=1) > 0)
    losses = nn.losses.cross_entropy(logits, tokens[:, 1:])
    return (losses * real).sum() / real.sum()


def make(to: Path, steps: int, rows: int) -> None:
    """Write the target into `to / "target"`, and prompts beside it."""
    folder = to / "target"
    folder.mkdir(parents=True)
    pairs = list(orders(steps * rows, seed=0))
    tokenizer = make_tokenizer(folder, [text for pair in pairs for text in pair])
    texts = [
        tokenizer.encode(f"<|user|>{prompt}<|end|><|assistant|>{answer}<|end|>").ids
        for prompt, answer in pairs
    ]
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(CONFIG))
    train(model, texts, steps, rows, rate=1.5e-3)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    write(to / "prompts.jsonl", 1200, seed=1)
    write(to / "held-out.jsonl", 8, seed=2)


def write(path: Path, count: int, seed: int) -> None:
    """Prompts as JSON lines, which train and bench read."""
    lines = [{"task": "orders", "prompt": prompt} for prompt, _ in orders(count, seed)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def main() -> None:
    """Write the target and the prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=240, help="of training (default: 240)")
    parser.add_argument("--rows", type=int, default=8, help="texts of a step (default: 8)")
    args = parser.parse_args()
    make(args.to, args.steps, args.rows)


if __name__ == "__main__":
    main()
