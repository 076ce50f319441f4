"""What a case is: a command, and what was damaged of its inputs, all from one random generator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from . import (
    argument_edits,
    byte_edits,
    gguf_edits,
    json_edits,
    odd,
    requests,
    safetensors_edits,
    template_edits,
)
from .commands import NAMES, Call, call, parser
from .stock import CANONICAL, DRAFTERS, GGUF_DRAFTERS, GGUF_TARGETS, TARGETS

_TARGET_USES = ("plain",) * 4 + ("generate",) * 2 + ("convert target", "quantise target", "chat")
_DRAFTER_USES = ("generate",) * 4 + ("sampled", "convert drafter", "quantise drafter", "check")
_TEXT_USES = ("plain",) * 4 + ("generate", "chat", "chat", "schema", "evaluate", "convert target")


@dataclass
class Case:
    """A command line, and what is wrong with its inputs in words."""

    call: Call
    words: str


class Place:
    """The folder that a case runs in, filled with copies of the undamaged inputs.

    Args:
        folder: empty. cache: the user's cache folder. stock: see `stock.make`.
    """

    def __init__(self, folder: Path, cache: Path, stock: Path) -> None:
        self.folder, self.cache, self.stock = folder, cache, stock
        self._there: set[str] = set()

    def put(self, name: str, source: str) -> Path:
        """Copy a file or folder of the stock; once, since it may be damaged or gone by now."""
        to, where = self.folder / name, self.stock / source
        if name not in self._there:
            (shutil.copytree if where.is_dir() else shutil.copy)(where, to)
        self._there.add(name)
        return to

    def fill(self, made: Call) -> None:
        """Copy what the command reads and is not there yet."""
        for name in set(made.inputs) - self._there:
            whole = {"target": "targets/llama", "drafter": "drafters/canonical", "run": "run"}
            self.put(name, whole.get(name, f"files/{name}"))


def make(rng: Random, place: Place) -> Case:
    """Choose a command, put its inputs in place and damage something."""
    kinds = list(_KINDS)
    kind = rng.choices(kinds, [_KINDS[kind] for kind in kinds])[0]
    made, words = kind(rng, place)
    place.fill(made)
    if made.command == "chat":
        made.stdin = _said(rng)
    return Case(made, words)


def undamaged(place: Place, number: int) -> Case:
    """One of the commands as it works; they are numbered from 0 to `len(NAMES) - 1`."""
    made = call(NAMES[number])
    if made.command == "chat":
        made.stdin = b"abc\n"
    place.fill(made)
    return Case(made, f"nothing ({NAMES[number]})")


def _target_config(rng: Random, place: Place) -> tuple[Call, str]:
    name = rng.choice(TARGETS)
    folder = place.put("target", f"targets/{name}")
    files = [p for p in sorted(folder.glob("*.json")) if "token" not in p.name]
    words = damage_file(rng, rng.choice([folder / "config.json", *files]))
    return call(rng.choice(_TARGET_USES)), f"target {name}: {words}"


def _drafter_config(rng: Random, place: Place) -> tuple[Call, str]:
    name = rng.choice(DRAFTERS)
    folder = place.put("drafter", f"drafters/{name}")
    words = damage_file(rng, folder / "config.json")
    use = "export" if name in CANONICAL and rng.random() < 0.2 else rng.choice(_DRAFTER_USES)
    return call(use), f"drafter {name}: {words}"


def _weights(rng: Random, place: Place) -> tuple[Call, str]:
    if rng.random() < 0.5:
        part, name, uses = "target", rng.choice(TARGETS), _TARGET_USES
    else:
        part, name, uses = "drafter", rng.choice(DRAFTERS), (*_DRAFTER_USES, "fit further")
    folder = place.put(part, f"{part}s/{name}")
    words = damage_file(rng, rng.choice(sorted(folder.glob("*.safetensors"))))
    return call(rng.choice(uses)), f"{part} {name}: {words}"


def _gguf(rng: Random, place: Place) -> tuple[Call, str]:
    part = rng.choice(("target", "drafter"))
    name = rng.choice(GGUF_TARGETS if part == "target" else GGUF_DRAFTERS)
    file = f"{part}.gguf"
    words = damage_file(rng, place.put(file, f"gguf/{name}"))
    uses = ("plain", "convert target", "chat") if part == "target" else _DRAFTER_USES
    made = call(rng.choice(uses))
    made.arguments = [file if text == part else text for text in made.arguments]
    if made.command == "convert" and part == "target":
        made.arguments[0] = part
    if made.command == "convert" and part == "drafter" and "--from" in made.arguments:
        made.arguments[0] = part
    made.inputs = tuple(file if text == part else text for text in made.inputs)
    return made, f"{name}: {words}"


def _tokenizer(rng: Random, place: Place) -> tuple[Call, str]:
    folder = place.put("target", f"targets/{rng.choice(('llama', 'qwen3'))}")
    file = rng.choice(("tokenizer.json",) * 3 + ("tokenizer_config.json",) * 2 + ("extra",))
    if file == "extra":
        file = rng.choice(
            ("generation_config.json", "special_tokens_map.json", "added_tokens.json")
        )
        tokens = {"eos_token": "~", "bos_token": {"content": "/"}, "<x>": 64}
        if not (folder / file).exists():
            (folder / file).write_text(json.dumps(tokens))
    return call(rng.choice(_TEXT_USES)), damage_file(rng, folder / file)


def _template(rng: Random, place: Place) -> tuple[Call, str]:
    folder = place.put("target", "targets/llama")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    template, words = template_edits.damage(rng, settings["chat_template"])
    settings["chat_template"] = template
    if rng.random() < 0.2:
        del settings["chat_template"]
        text = template.encode("utf-8", "surrogatepass")
        (folder / "chat_template.jinja").write_bytes(text)
    elif rng.random() < 0.1:
        settings["chat_template"] = [{"name": "default", "template": template}]
    path.write_text(json.dumps(settings))
    made = call(rng.choice(_TEXT_USES))
    if rng.random() < 0.2 and made.command in ("generate", "chat"):
        made.arguments += ["--system-prompt", "be brief"]
    return made, words


_OWN = {
    "calibration.json": ("generate", "sampled", "convert drafter", "replay calibrated"),
    "frequent_tokens.json": ("generate", "convert drafter", "fit further"),
    "prompts.jsonl": ("bench", "calibrate", "check"),
    "turns.jsonl": ("evaluate", "train"),
    "rounds.jsonl": ("fit", "replay"),
    "profile.json": ("profile", "replay"),
    "stored profile": ("generate", "sampled", "profile"),
    "schema.json": ("schema",) * 3,
    "bias.json": ("bias",) * 2,
    "run": ("go on",) * 3,
}


def _own_files(rng: Random, place: Place) -> tuple[Call, str]:
    name = rng.choice(list(_OWN))
    if name in ("calibration.json", "frequent_tokens.json"):
        path = place.put("drafter", "drafters/canonical") / name
    elif name == "stored profile":
        shutil.copytree(place.stock / "cache", place.cache)
        path = next(place.cache.rglob("*.json"))
    elif name == "run":
        path = rng.choice(sorted(p for p in place.put("run", "run").rglob("*") if p.is_file()))
    else:
        path = place.put(name, f"files/{name}")
    words = damage_file(rng, path)
    return call(rng.choice(_OWN[name])), words


def _arguments(rng: Random, place: Place) -> tuple[Call, str]:
    made = call(rng.choice([x for x in NAMES if x not in ("fit further", "request")]))
    words = argument_edits.damage(rng, made.arguments, parser(made.command, made.arguments))
    # Things to be mistaken for others.
    place.fill(Call("", [], ("target", "drafter", "prompts.jsonl")))
    return made, words


def _request(rng: Random, place: Place) -> tuple[Call, str]:
    made = call("request")
    made.arguments = [f"{rng.random()}"]
    prompt, settings = requests.draw(Random(made.arguments[0]))
    return made, f"prompt {odd.shown(prompt)}, {settings!r}"


_KINDS: dict[Callable[[Random, Place], tuple[Call, str]], int] = {
    _target_config: 15,
    _drafter_config: 17,
    _weights: 13,
    _gguf: 11,
    _tokenizer: 12,
    _template: 6,
    _own_files: 14,
    _arguments: 16,
    _request: 6,
}


def damage_file(rng: Random, path: Path) -> str:
    """Damage a file in the way of its format; returns how, in words that begin with its name."""
    if rng.random() < 0.04:
        return f"{path.name}: {byte_edits.misplace(rng, path)}"
    old = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.88:
        new, words = json_edits.damage(rng, json.loads(old))
    elif path.suffix == ".jsonl" and rng.random() < 0.8:
        new, words = _line(rng, old)
    elif path.suffix == ".safetensors":
        new, words = safetensors_edits.damage(rng, old)
    elif path.suffix == ".gguf":
        new, words = gguf_edits.damage(rng, old)
    else:
        new, words = byte_edits.damage(rng, old)
    path.write_bytes(new)
    return f"{path.name}: {words}"


def _line(rng: Random, old: bytes) -> tuple[bytes, str]:
    """JSON lines with one damaged, or with another end."""
    lines = old.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.15:
        lines[at] = rng.choice((b"", b" ", b"\xc2\x85", b"{} {}", b'"\xe2\x80\xa8"', b"\x00"))
        return b"\n".join(lines) + b"\n", f"line {at + 1} is {lines[at]!r}"
    lines[at], words = json_edits.damage(rng, json.loads(lines[at]))
    end = rng.choice((b"\n", b"\n", b"\r\n", b"\n\n", b""))
    return b"\n".join(lines) + end, f"line {at + 1}: {words}; then {end!r}"


def _said(rng: Random) -> bytes:
    """What somebody types into a chat."""
    lines = [b"hello", b"", b"/reset", b"/nothing", b"/exit", b"\xff\xfe", b"a" * 500, b"\x00"]
    lines += [text.encode("utf-8", "replace")[:1000] for text in odd.STRINGS]
    return b"abc\n" + b"\n".join(rng.choice(lines) for _ in range(rng.randrange(3)))
