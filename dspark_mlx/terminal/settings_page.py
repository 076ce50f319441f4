"""docs/settings.md, written from the tables of settings.

python -m dspark_mlx.terminal.settings_page > docs/settings.md
"""

from __future__ import annotations

from ..caches.settings import CACHE_SETTINGS
from ..engine.request import SETTINGS
from ..engine.template_settings import TEMPLATE_SETTINGS
from ..sampling.setting_table import Flag, Setting

COMMAND = "python -m dspark_mlx.terminal.settings_page > docs/settings.md"

_PAGE = """\
# Request settings

`Decoder.stream` and `Decoder.generate` take every setting below as a keyword argument, and so does
`Decoder.rounds`, except `stop` and the four of chat templates ({template}): it decodes token ids
and knows no text. Each request has its own settings. The commands have flags for most of them.

```python
decoder = dspark_mlx.load()
for chunk in decoder.stream("The sea is", max_tokens=64, temperature=0.8, top_p=0.95, seed=7):
    print(chunk.text, end="", flush=True)
```

```bash
python -m dspark_mlx.generate --prompt "Describe the sea." -m 64 --temp 0.8 --top-p 0.95 --seed 7
```

A setting that mlx-lm has too means the same as there. They apply in mlx-lm's order: `logit_bias`
and `banned_tokens`, the penalties, `logits_processors`, then `top_p`, `min_p`, XTC and `top_k` on
the distribution at temperature 1, and the temperature last. A setting whose name, type or range is
wrong raises `dspark_mlx.InputError` before anything is generated.

Two settings end a text early. `stop` gives strings: the text is cut before the first that appears.
`stop_tokens` gives token ids: the one that ended the text is the last token of the last `Round`; it
has a `Chunk` and adds no text. A request without `stop_tokens` ends at those of
`Decoder.stop_tokens`.

| setting | type | default | flag | in mlx-lm | meaning |
|---|---|---|---|---|---|
{rows}

## Settings of the caches

`load` takes them, for all requests of a decoder; the commands that load a target have the flags.

| setting | type | default | flag | in mlx-lm | meaning |
|---|---|---|---|---|---|
{caches}

[caches.md](caches.md) says what they do to memory, positions and the text.

This page is written from the tables in `dspark_mlx/sampling/settings.py`,
`dspark_mlx/engine/request.py` and `dspark_mlx/caches/settings.py`: `{command}`.
"""


def settings_page() -> str:
    """The text of docs/settings.md."""
    return _PAGE.format(
        rows="\n".join(map(_row, SETTINGS.values())),
        template=", ".join(f"`{name}`" for name in TEMPLATE_SETTINGS),
        caches="\n".join(map(_row, CACHE_SETTINGS.values())),
        command=COMMAND,
    )


def _row(row: Setting) -> str:
    default = f'"{row.default}"' if isinstance(row.default, str) else repr(row.default)
    cells = (
        f"`{row.name}`",
        _code(row.type),
        _code(default),
        _flag(row.flag),
        _code(row.mlx_lm),
        row.sentence,
    )
    return f"| {' | '.join(cells)} |"


def _flag(flag: Flag | None) -> str:
    if flag is None:
        return ""
    names = ", ".join(f"`{name}`" for name in (flag.name, flag.short) if name)
    return f"{names} of `{flag.command}`" if flag.command else names


def _code(text: str) -> str:
    # A table's cell ends at a bar, in code as well.
    return f"`{text}`".replace("|", "\\|") if text else ""


if __name__ == "__main__":
    print(settings_page(), end="")
