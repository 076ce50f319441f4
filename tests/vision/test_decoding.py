"""Prompts with images give the tokens that mlx-vlm itself generates, whatever the drafter."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import mlx.core as mx
import numpy as np
import pytest
from helpers.scripted import ScriptedDrafter
from helpers.tiny_vision import CONFIGS, IMAGE, mark_of, picture, vision_folder

import dspark_mlx
from dspark_mlx import InputError, chat, generate
from dspark_mlx.engine.state import Engine
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.vision.families import FAMILIES
from dspark_mlx.vision.qwen import QwenImages

pytest.importorskip("mlx_vlm", reason="the extra vision is not installed")

TOKENS = 24
NAMES = tuple(CONFIGS)
PICTURES = (picture(1), picture(2, 40, 20))


def shown(text, *images):
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


TWO = [shown("what is this", *PICTURES)]
LATER = [*TWO, {"role": "assistant", "content": "a cat"}, {"role": "user", "content": "and why"}]


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A family's folder and decoder, loaded once."""

    @cache
    def open_family(name):
        folder = vision_folder(tmp_path_factory.mktemp("vision") / "target", name)
        return folder, dspark_mlx.load(folder, drafter=False)

    return open_family


def of_mlx_vlm(folder, text, images, tokens=TOKENS):
    """Token ids of the prompt, and what mlx-vlm's own loop chooses."""
    from mlx_vlm.generate import generate_step
    from mlx_vlm.utils import load_model, load_processor, prepare_inputs

    model = load_model(folder)
    processor = load_processor(folder, False, trust_remote_code=False)
    inputs = prepare_inputs(processor, images=list(images), prompts=text)
    ids, mask = inputs.pop("input_ids"), inputs.pop("attention_mask")
    pixels = inputs.pop("pixel_values")
    steps = generate_step(ids, model, pixels, mask, max_tokens=tokens, temperature=0.0, **inputs)
    return ids[0].tolist(), [token for token, _ in steps]


def tokens_of(decoder, messages, tokens=TOKENS, **settings):
    made = []
    chunks = decoder.stream(
        messages,
        tokens,
        stop_tokens=(),
        on_round=lambda round_: made.extend(round_.tokens),
        **settings,
    )
    assert list(chunks)
    return made[:tokens]


def drafting(decoder, text, wrong):
    drafter = ScriptedDrafter(text, decoder.engine.target.vocab_size, wrong)
    target = decoder.engine.target
    return decoder.with_engine(Engine(target, drafter, FullScheduler()), None), drafter


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_mlx_vlm(opened, name):
    """An image cut by a chunk, scaled twice, masked as text, or lost in a rollback."""
    folder, decoder = opened(name)
    ids, expected = of_mlx_vlm(folder, f"/{2 * mark_of(name)}what is this~|", PICTURES)
    assert len(set(expected)) > 3 and ids.count(IMAGE) > len(PICTURES)
    for size in (5, 2048):
        assert tokens_of(decoder, TWO, prefill_step_size=size) == expected
    for wrong in (0.1, 0.9):
        drafts, _ = drafting(decoder, [*ids, *expected], wrong)
        assert tokens_of(drafts, TWO, prefill_step_size=7) == expected
    other = [shown("what is this", picture(8), picture(9))]
    assert tokens_of(decoder, other) != expected


@pytest.mark.parametrize("name", NAMES)
def test_text_follows_images(opened, name):
    """A second turn that forgets the image, and text that is decoded otherwise after one."""
    folder, decoder = opened(name)
    written = f"/{2 * mark_of(name)}what is this~/a cat~/and why~|"
    _, expected = of_mlx_vlm(folder, written, PICTURES)
    text = [{"role": "user", "content": "and why"}]
    fresh = tokens_of(dspark_mlx.load(folder, drafter=False), text)
    assert tokens_of(decoder, LATER) == expected
    assert tokens_of(decoder, text) == fresh
    handle = decoder.submit(LATER, TOKENS, stop_tokens=())
    assert [chunk.token for chunk in handle] == expected
    decoder.close()


@pytest.mark.parametrize("name", NAMES)
def test_requests_decode_beside_each_other(opened, name):
    """A batch whose ropes have one request's positions."""
    folder, decoder = opened(name)
    text = [{"role": "user", "content": "and why"}]
    prompts = [TWO, text, LATER, [{"role": "user", "content": "so what is it"}]]
    alone = [decoder.generate(prompt, TOKENS) for prompt in prompts]
    ids, expected = of_mlx_vlm(folder, f"/{2 * mark_of(name)}what is this~|", PICTURES)
    drafts, _ = drafting(decoder, [*ids, *expected], 0.5)
    assert decoder.generate_batch(prompts, TOKENS) == alone
    assert drafts.generate(TWO, TOKENS) == alone[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_drafter_sees_the_rows_of_images(opened, name):
    """A context without image rows, or with the rows of the placeholder token."""
    _, decoder = opened(name)
    decoder = decoder.plain()
    decoder.engine.target.close()
    target = decoder.engine.target.sharing((-1, 1), "tiny")
    decoder = decoder.with_engine(replace(decoder.engine, target=target), None)
    prompt = decoder._text.encoder.read(f"/{mark_of(name)}what~|", PICTURES[:1])
    drafts, drafter = drafting(decoder, prompt.ids, 0.9)
    tokens_of(drafts, [shown("what", *PICTURES[:1])], 4, prefill_step_size=6)
    entering, first = drafter.context.features()
    length = len(prompt.ids)
    assert len(entering) == len(first) == len(drafter.context.tokens) >= length
    assert drafter.context.tokens[:length] == prompt.ids
    rows = np.array(prompt.embed().rows["input_embeddings"][0])
    np.testing.assert_allclose(np.array(entering[:length]), rows, rtol=1e-6)
    table = np.array(target.embed(mx.array([IMAGE])))[0]
    at = prompt.ids.index(IMAGE)
    assert np.abs(rows[at] - table).max() > 0.01


def test_rows_of_an_image_see_each_other(opened, monkeypatch):
    """A test above that passes because the mask of images changes nothing."""
    _, decoder = opened("gemma4")
    expected = tokens_of(decoder, TWO)
    text = decoder.config["text_config"]
    monkeypatch.setitem(text, "use_bidirectional_attention", None)
    assert tokens_of(decoder, TWO) != expected


@pytest.mark.parametrize("part", ["_delta", "_positions", "_added"])
def test_each_part_of_qwens_reading_counts(opened, monkeypatch, part):
    """A test above that passes because images have the positions of text, or no layer adds them."""
    _, decoder = opened("qwen3_vl")
    expected = tokens_of(decoder, TWO)

    class Without(QwenImages):
        def __init__(self, *args):
            super().__init__(*args)
            assert self._delta < 0 and len(self._added) == 2
            usual = np.tile(np.arange(self._positions.shape[1]), (3, 1))
            setattr(self, part, {"_delta": 0, "_positions": usual, "_added": []}[part])

    monkeypatch.setitem(FAMILIES, "qwen3_vl", Without)
    assert tokens_of(decoder, TWO) != expected


def test_half_a_precision_is_the_images_too(opened):
    """An image's rows that make the whole prompt float32."""
    folder, _ = opened("gemma4")
    decoder = dspark_mlx.load(folder, drafter=False, precision="bfloat16")
    rows = decoder._text.encoder.read("/<image>~|", PICTURES[:1]).embed().rows
    assert rows["input_embeddings"].dtype == mx.bfloat16


def test_the_command_shows_images(opened, tmp_path, capsys):
    """--image that is read after the model, or not at all."""
    folder, decoder = opened("lfm2_vl")
    path = tmp_path / "picture.png"
    PICTURES[0].save(path)
    flags = ["--model", str(folder), "--no-drafter", "--prompt", "what", "--max-tokens", "8"]
    assert generate.main([*flags, "--image", str(path), "--image", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    want = decoder.stream([shown("what", path, path)], 8)
    assert report["text"] == "".join(chunk.text for chunk in want)
    for more in (["--compare"], ["--ignore-chat-template"]):
        with pytest.raises(InputError, match="--image"):
            generate.main([*flags, "--image", str(path), *more])


def test_a_chat_shows_images(opened, tmp_path, capsys, monkeypatch):
    """An image that is lost, shown again with each message, or that ends the chat."""
    folder, decoder = opened("lfm2_vl")
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for path, image in zip((first, second), PICTURES, strict=True):
        image.save(path)
    lines = iter(["what", f"/image {second}", "/image none.png", "and this", "why", None])
    monkeypatch.setattr(chat, "_read_line", lambda: next(lines))
    flags = ["--model", str(folder), "--no-drafter", "--max-tokens", "4", "--image", str(first)]
    assert chat.main(flags) == 0
    said = capsys.readouterr()
    assert "/image: found none.png, which is no file" in said.err
    talk = decoder.conversation()
    texts = []
    for message in (shown("what", first), shown("and this", second), "why"):
        texts.append("".join(chunk.text for chunk in talk.send(message, max_tokens=4)))
    assert said.out == "".join(f"{text}\n" for text in texts)


def test_what_cannot_be_read_is_refused(opened, tmp_path):
    """An image that is left out silently, or an error of mlx-vlm in the middle of a text."""
    _, decoder = opened("lfm2_vl")
    template = "{% for m in messages %}/{{ m['content'][-1]['text'] }}{% endfor %}|"
    bare = vision_folder(tmp_path / "bare", "lfm2_vl")
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    (bare / "chat_template.jinja").write_text(template)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="a prompt with 0"):
        dspark_mlx.load(bare, drafter=False).stream(TWO)
    tensors = mx.load(str(bare / "model.safetensors"))
    kept = {name: value for name, value in tensors.items() if name.startswith("language")}
    mx.save_safetensors(str(bare / "model.safetensors"), kept, {"format": "mlx"})
    with pytest.raises(InputError, match="no image encoder"):
        dspark_mlx.load(bare, drafter=False).stream(TWO)
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\]"):
        decoder.encode(TWO)
    with pytest.raises(InputError, match="for a network that was given"):
        given = (decoder.engine.target.model, decoder.tokenizer.wrapped)
        decoder.engine.target.close()
        dspark_mlx.load(given, drafter=False).stream(TWO)
