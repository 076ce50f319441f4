"""Between a user's text and the target: tokenizer, messages, end tokens, numbers, positions."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from helpers.chat_toys import ANSWER, CHARACTERS, END, TEMPLATE, USER, chat_decoder
from helpers.tiny_models import VOCAB, tiny

from dspark_mlx.decoder import Decoder
from dspark_mlx.engine.state import Engine
from dspark_mlx.errors import InputError
from dspark_mlx.sampling.settings import Sampling
from dspark_mlx.sampling.transform import Filters, plain_sampler
from dspark_mlx.schedulers.full import FullScheduler
from dspark_mlx.targets.positions import max_length
from dspark_mlx.targets.tap import Target
from dspark_mlx.text.detokenizer import Detokenizer
from dspark_mlx.text.end_tokens import end_tokens
from dspark_mlx.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Decoder:
    return chat_decoder(tmp_path_factory.mktemp("chat"))


def ids(text: str) -> list[int]:
    return [CHARACTERS.index(letter) + 3 for letter in text]


def edited(decoder: Decoder, folder: Path, name: str, change: Any) -> Path:
    """A copy of the folder whose file is `change` of its bytes, or has its keys."""
    shutil.copytree(decoder.target_folder, folder)
    path = folder / name
    content = path.read_bytes() if path.exists() else b"{}"
    if isinstance(change, dict):
        path.write_text(json.dumps(json.loads(content) | change))
    else:
        path.write_bytes(change(content))
    return folder


def forced(wish: list[int], prompt: int) -> Any:
    """A logits processor that makes a text of these ids."""

    def processor(tokens: mx.array, logits: mx.array) -> mx.array:
        at = tokens.shape[0] - prompt
        return mx.where(mx.arange(VOCAB) == wish[at], 0.0, -1e4)[None] if at < len(wish) else logits

    return processor


def written(decoder: Decoder, wish: list[int], **settings: Any) -> str:
    processors = (forced(wish, 2),)
    chunks = decoder.stream([5, 6], len(wish), logits_processors=processors, **settings)
    return "".join(chunk.text for chunk in chunks)


OWN = {"tokenizer_class": "Own"}
CODE = [
    ("tokenizer_config.json", OWN | {"auto_map": {"AutoTokenizer": ["own.Own", None]}}, "auto_map"),
    ("tokenizer_config.json", OWN | {"auto_map": ["a/b--own.Own", None]}, "auto_map"),
    ("tokenizer_config.json", {"tokenizer_class": None, "auto_map": ["own.Own"]}, "auto_map"),
    ("tokenizer_config.json", {"tool_parser_type": "../../x"}, "tool_parser_type"),
    ("tokenizer_config.json", {"chat_template_type": "os"}, "chat_template_type"),
]


@pytest.mark.parametrize("name, change, key", CODE)
def test_code_from_a_checkpoint_is_refused_by_its_key(decoder, tmp_path, name, change, key):
    """A tokenizer's own module that is run, asked about, or imported by name."""
    folder = edited(decoder, tmp_path / "code", name, change)
    (folder / "own.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(InputError, match=key) as error:
        Tokenizer.load(folder)
    assert error.value.where.endswith(name)
    assert "own" not in sys.modules


def test_code_beside_a_known_model_is_not_read(decoder, tmp_path):
    """auto_map beside classes that mlx-lm and transformers have themselves, followed or refused."""
    change = {"auto_map": {"AutoConfig": "own.Own", "AutoTokenizer": "own.Own"}}
    folder = edited(decoder, tmp_path / "code", "config.json", change)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["own.Own", "own.Own"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text("raise SystemExit('the code ran')")
    assert Tokenizer.load(folder).encode("ab") == ids("ab")


DAMAGED = [
    ("tokenizer.json", lambda b: b[: len(b) // 2]),
    ("tokenizer.json", lambda b: b""),
    ("tokenizer.json", lambda b: b"[]"),
    ("tokenizer.json", lambda b: b.replace(b'"BPE"', b'"XYZ"')),
    ("tokenizer.json", lambda b: b.replace(b'"vocab"', b'"bocav"')),
    ("tokenizer_config.json", lambda b: b[:-9]),
    ("tokenizer_config.json", lambda b: b"\xff\xfe"),
    ("tokenizer_config.json", lambda b: b'{"eos_token": {"content": 3}}'),
    ("special_tokens_map.json", lambda b: b"[1"),
]


@pytest.mark.parametrize("name, change", DAMAGED)
def test_damaged_files_are_one_line(decoder, tmp_path, name, change):
    """A traceback out of transformers, or the plain Exception of tokenizers."""
    folder = edited(decoder, tmp_path / "damaged", name, change)
    with pytest.raises(InputError) as error:
        Tokenizer.load(folder).encode("ab")
    assert str(folder) in error.value.where
    assert "\n" not in str(error.value)


VALUES = [
    ("tokenizer_config.json", lambda b: b"\xef\xbb\xbf" + b),
    ("tokenizer.json", lambda b: b"\xef\xbb\xbf" + b),
    ("config.json", {"max_position_embeddings": None}),
    ("config.json", {"max_position_embeddings": 512.0, "eos_token_id": "0", "pad_token_id": "x"}),
]


@pytest.mark.parametrize("name, change", VALUES)
def test_what_the_model_loads_with_does_not_stop_the_tokenizer(decoder, tmp_path, name, change):
    """A byte order mark, or a number in config.json that transformers checks and nobody needs."""
    tokenizer = Tokenizer.load(edited(decoder, tmp_path / "odd", name, change))
    assert tokenizer.encode("ab") == ids("ab")


def test_end_tokens_are_what_any_file_names(decoder, tmp_path):
    """A second end token that is lost to generation_config.json, so that answers never end."""
    folder = edited(decoder, tmp_path / "ends", "config.json", {"eos_token_id": [7, "8"]})
    (folder / "generation_config.json").write_bytes(b'\xef\xbb\xbf{"eos_token_id": 9.0}')
    config = {"eos_token_id": 9, "text_config": {"eos_token_id": [10, -1, None]}}
    assert end_tokens(folder, config, VOCAB) == {7, 8, 9, 10}
    both = Decoder(decoder.engine, folder, config)
    assert both.stop_tokens == {7, 8, 9, 10, END}
    (folder / "tokenizer.json").unlink()
    assert Decoder(decoder.engine, folder, config).stop_tokens == {7, 8, 9, 10}
    settings = {"logits_processors": (forced([5, 8, 6], 1),)}
    tokens = [t for r in both.rounds([4], 3, **settings) for t in r.tokens]
    text = "".join(chunk.text for chunk in both.stream([4], 3, **settings))
    assert (tokens, text) == ([5, 8], CHARACTERS[2])


@pytest.mark.parametrize("value", [VOCAB, -2, True, "x", [1.5], 10**30, [[1]]])
def test_an_end_token_that_is_none_is_refused(tmp_path, value):
    with pytest.raises(InputError, match="eos_token_id"):
        end_tokens(tmp_path, {"eos_token_id": value}, VOCAB)


PROMPTS = [
    np.array([5, 6]),
    mx.array([5, 6]),
    [np.int64(5), mx.array(6)],
    (np.uint8(5), np.array(6)),
]


@pytest.mark.parametrize("prompt", PROMPTS, ids=str)
def test_numbers_of_numpy_and_mlx_are_taken(decoder, prompt):
    """Ids and settings as data sets and sweeps have them, refused as no numbers."""
    plain = {"temperature": 0.5, "top_k": 9, "seed": 3, "logit_bias": {7: 2.5}}
    theirs = {
        "temperature": np.float32(0.5),
        "top_k": mx.array(9),
        "seed": np.int64(3),
        "logit_bias": {np.int32(7): mx.array(2.5)},
        "banned_tokens": np.array([], dtype=np.int64),
        "xtc_special_tokens": None,
    }
    wanted = [r.tokens for r in decoder.rounds([5, 6], 6, stop_tokens=[END], **plain)]
    stops = np.array([END])
    assert wanted == [
        r.tokens for r in decoder.rounds(prompt, np.int64(6), stop_tokens=stops, **theirs)
    ]
    assert decoder.encode(prompt) == [5, 6]


@pytest.mark.parametrize("prompt", [b"ab", bytearray(b"ab"), np.array([[5]]), [5, True], [5, 2.0]])
def test_what_is_no_token_id_is_refused(decoder, prompt):
    """Bytes taken for ids without a word."""
    for use in (decoder.stream, decoder.rounds):
        with pytest.raises(InputError, match="prompt"):
            use(prompt, 2)


BAD = [
    {"temperature": np.bool_(True)},
    {"temperature": mx.array(True)},
    {"temperature": 10**400},
    {"seed": 10**5000},
    {"presence_penalty": 1e300},
    {"repetition_penalty": 1e-300},
    {"logit_bias": {"5": 1.0}},
    {"banned_tokens": b"ab"},
    {"top_k": np.array([3])},
]


@pytest.mark.parametrize("settings", BAD, ids=lambda s: str(list(s)))
def test_a_number_that_cannot_be_used_is_one_short_line(decoder, settings):
    with pytest.raises(InputError) as error:
        decoder.rounds([5], 2, **settings)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("top_p, min_p", [(0, 0), (1, 0), (0.5, 1), (0, 1.0), (0.3, 0)])
def test_top_p_and_min_p_mean_what_mlx_lm_takes_them_for(top_p, min_p):
    """top_p 0 and min_p 1 refused; 0 taken for the likeliest token alone."""
    sampling = Sampling(temperature=1.0, top_p=top_p, min_p=min_p)
    sampling.check()
    logits = mx.random.normal((1, VOCAB), key=mx.random.key(2))
    kept = np.flatnonzero(np.array(Filters(sampling, 1.0)(logits, None))[0] > -np.inf)
    # mlx-lm's own sampler, with what the user gave it.
    from mlx_lm.sample_utils import make_sampler

    mx.random.seed(1)
    logprobs = logits - mx.logsumexp(logits)
    drawn = {int(make_sampler(1.0, top_p, min_p)(logprobs)[0]) for _ in range(2000)}
    assert drawn <= set(kept.tolist())
    mass = float(mx.exp(logprobs)[0, mx.array(kept)].sum())
    likely = {t for t in kept.tolist() if float(mx.exp(logprobs)[0, t]) / mass > 0.01}
    assert likely <= drawn
    assert plain_sampler(sampling, VOCAB)(logprobs).shape == (1,)


def scaled(length: int, **scaling: Any) -> dict[str, Any]:
    return {"max_position_embeddings": length, "rope_scaling": scaling}


ORIGINAL = "original_max_position_embeddings"
LENGTHS = [
    ({"max_position_embeddings": None, "n_positions": 99}, 99),
    ({"max_position_embeddings": 512.0}, 512),
    ({"text_config": {"max_position_embeddings": 77}}, 77),
    ({"text_config": ["a"]}, None),
    (scaled(64, type="linear", factor=4.0), 256),
    (scaled(64, rope_type="dynamic", factor=2), 128),
    (scaled(64, rope_type="yarn", factor=4.0, **{ORIGINAL: 64}), 256),
    # Qwen3's model card, Llama 3.1, DeepSeek-V3, Phi-3.5: lengths that have the scaling in them.
    (scaled(40960, rope_type="yarn", factor=4.0, **{ORIGINAL: 32768}), 131072),
    (scaled(131072, rope_type="llama3", factor=8.0, **{ORIGINAL: 8192}), 131072),
    (scaled(163840, type="yarn", factor=40, **{ORIGINAL: 4096}), 163840),
    ({**scaled(131072, type="longrope", long_factor=[1.0]), ORIGINAL: 4096}, 131072),
    ({**scaled(131072, rope_type="linear", factor=8.0), "model_type": "gemma3_text"}, 131072),
    (scaled(64, rope_type="default", factor=4.0), 64),
]


@pytest.mark.parametrize("config, expected", LENGTHS)
def test_scaled_contexts_count_scaled(config, expected):
    """Prompts refused at the length that the model had before YaRN, or scaled twice."""
    assert max_length(Path("m"), config) == expected


@pytest.mark.parametrize("value", [0, -5, 1.5, "many", True, [3]])
def test_a_length_that_is_none_is_refused(value):
    with pytest.raises(InputError, match="max_position_embeddings"):
        max_length(Path("m"), {"max_position_embeddings": value})


def test_a_text_that_the_positions_end_says_so(decoder):
    """max_tokens that is cut without a word."""
    short = Decoder(decoder.engine, decoder.target_folder, {"max_position_embeddings": 8})
    with pytest.warns(UserWarning, match="after 3 of max_tokens 50"):
        chunks = list(short.stream([5] * 5, 50, banned_tokens=[END]))
    assert (len(chunks), chunks[-1].finish_reason) == (3, "length")


def test_the_leading_space_of_a_completion_is_kept(decoder):
    """ " lead" streamed as "lead", which runs into the text before it."""
    assert written(decoder, ids(" lead")) == " lead"


def test_ids_without_a_token_are_nothing(decoder, tmp_path):
    """The padded rows of a head shown as "!"."""
    tokenizer = decoder.tokenizer
    stream = tokenizer.detokenizer_after([5])
    for token in (*ids("a"), VOCAB, VOCAB + 900, *ids("b")):
        stream.add_token(token)
    stream.finalize()
    assert stream.last_segment == "ab"
    assert tokenizer.decode([*ids("a"), VOCAB + 9]) == "a"


def byte_decode(tokens: list[int]) -> str:
    return bytes(tokens).decode("utf-8", "replace")


def piece_decode(tokens: list[int]) -> str:
    """SentencePiece with byte fallback: a group of bytes is text as a whole or not at all, and the
    first space is dropped."""
    text, group = "", b""
    for token in [*tokens, -1]:
        if 128 <= token < 256:
            group += bytes([token])
            continue
        try:
            text += group.decode()
        except UnicodeDecodeError:
            text += "\ufffd" * len(group)
        group = b""
        text += chr(token) if token >= 0 else ""
    return text.removeprefix(" ")


@pytest.mark.parametrize("decode", [byte_decode, piece_decode])
@pytest.mark.parametrize("start", ["", "[INST]", "a long beginning, longer than a window", " é"])
def test_streamed_text_is_what_decoding_all_ids_gives(decode, start):
    """Pieces cut inside characters, spaces lost, or text lost where a window moves on."""
    text = " Größe: 日本語 👩‍👩‍👧 é " * 9 + "\ufffd" + "x" * 40
    before, tokens = list(start.encode()), list(text.encode())
    stream, pieces = Detokenizer(decode, before), []
    for token in tokens:
        stream.add_token(token)
        pieces.append(stream.last_segment)
    stream.finalize()
    got = "".join(pieces) + stream.last_segment
    assert got == decode([*before, *tokens])[len(decode(before)) :]
    assert max(map(len, pieces)) <= 4


def test_bytes_that_are_no_text_do_not_pile_up():
    """A garbled text decoded from its beginning with every token."""
    lengths = []

    def decode(tokens: list[int]) -> str:
        lengths.append(len(tokens))
        return byte_decode(tokens)

    stream = Detokenizer(decode)
    for _ in range(2000):
        stream.add_token(0x80)
    stream.finalize()
    assert stream.last_segment == "\ufffd" * 2000
    assert max(lengths) < 600


def test_a_text_prompt_does_not_end(decoder, tmp_path):
    """Tokenizers that put their end token behind every text, a prompt to go on with included."""
    special = {"SpecialToken": {"id": "~", "type_id": 0}}
    first = {"SpecialToken": {"id": "/", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}, special],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]}
            for name, number in (("~", END), ("/", USER))
        },
    }
    folder = edited(decoder, tmp_path / "ends", "tokenizer.json", {"post_processor": processor})
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.encode("ab") == [USER, *ids("ab"), END]
    assert tokenizer.encode_prompt("ab") == [USER, *ids("ab")]
    assert tokenizer.encode_prompt("ab~") == [USER, *ids("ab"), END]


PARTS = (
    "{% for m in messages %}{% if m.content is string %}/{{ m.content }}{% else %}"
    "{% for p in m.content %}/{{ p.text }}{% endfor %}{% endif %}~{% endfor %}"
)


def templated(decoder: Decoder, folder: Path, template: str) -> Tokenizer:
    change = {"chat_template": template}
    return Tokenizer.load(edited(decoder, folder, "tokenizer_config.json", change))


def test_parts_and_missing_content_go_where_the_template_takes_them(decoder, tmp_path):
    """Messages as API clients send them: refused, or printed as Python prints a list."""
    tokenizer = templated(decoder, tmp_path / "parts", PARTS)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    messages = [{"role": "user", "content": parts}, call]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "/a/b~~"
    for template in (TEMPLATE, "{{ messages[0].content }}"):
        plain = templated(decoder, tmp_path / str(len(template)), template)
        with pytest.raises(InputError, match=r"messages\[0\].content.*takes no parts"):
            plain.apply_chat_template(messages)


MESSAGES = [
    ([{"role": "user", "content": "a"}, "b"], r"messages\[1\]: found 'b'"),
    ([{"content": "a"}], r"messages\[0\]: found no role"),
    ([{"role": 3, "content": "a"}], r"messages\[0\]: found the role 3"),
    ([{"role": "user", "content": 5}], r"messages\[0\].content: found 5"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], r"content\[0\]: found a part of type"),
    ([{"role": "user", "content": "a\ud800b"}], "which is no character"),
    ([{"role": "user", "content": "a", "x": object()}], r"messages\[0\].x: found a object"),
]


@pytest.mark.parametrize("messages, message", MESSAGES)
def test_a_message_of_another_shape_is_named_by_its_index(decoder, messages, message):
    with pytest.raises(InputError, match=message):
        decoder.encode(messages)


FAILING = [
    ("{{ raise_exception('System role\n not supported') }}", "System role not.*no system message"),
    ("{% for m in messages %}", "cannot write these messages"),
    ("{{ messages[0].nothing.more }}", "no attribute"),
    ("{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}", "too many steps"),
    ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot write these messages"),
]


@pytest.mark.parametrize("template, message", FAILING)
def test_a_template_that_fails_is_one_line(decoder, tmp_path, template, message):
    """Tracebacks out of Jinja, of the system role above all, which many templates refuse."""
    tokenizer = templated(decoder, tmp_path / "bad", template)
    chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(InputError, match=message) as error:
        tokenizer.apply_chat_template(chat)
    assert "\n" not in str(error.value)


def test_half_characters_are_refused(decoder):
    """A TypeError out of tokenizers for text that was read from bytes that are not UTF-8."""
    for use in (lambda: decoder.encode("a\udce9"), lambda: decoder.stream("a", 2, stop="\ud800")):
        with pytest.raises(InputError, match="which is no character"):
            use()


def test_messages_become_the_templates_ids(decoder):
    chat = [{"role": "user", "content": "hi"}]
    assert decoder.encode(chat) == [USER, *ids("hi"), END, ANSWER]
    fresh = Decoder(
        Engine(Target(tiny("llama"), (0,), "toy"), None, FullScheduler()), Path("nowhere"), {}
    )
    assert fresh.stop_tokens == frozenset()
