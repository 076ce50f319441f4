"""The model card of a folder: README.md, with the front matter that the Hub reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from ..system.files import write_text
from .base_config import CanonicalConfig

_INSTALL = "pip install .    # in a clone of dspark_mlx"


def write_card(
    folder: Path,
    title: str,
    paragraphs: Sequence[str],
    *,
    drafter: bool,
    licence: str = "",
    base: Sequence[str] = (),
) -> None:
    """Write README.md into a drafter's or a target's folder.

    Args:
        folder: where the card is written.
        title: its heading.
        paragraphs: what follows, in Markdown.
        drafter: whether it is a drafter's card, which the Hub's tags tell from a target's.
        licence: as the source states it; "" leaves it out.
        base: Hub ids of the models that this one was made from.

    Raises:
        InputError: the file cannot be written.
    """
    data = ModelCardData(
        license=licence or None,
        base_model=list(base) or None,
        # As mlx-lm writes it: the Hub knows this one.
        library_name="mlx",
        pipeline_tag="text-generation",
        tags=["mlx", "dspark", "speculative-decoding"] if drafter else ["mlx"],
    )
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", *paragraphs]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def drafter_text(config: CanonicalConfig, name: str, builtin: bool = False) -> str:
    """Two paragraphs that say what a drafter is and how it is run.

    Args:
        config: the drafter's.
        name: what --drafter is given: a Hub id or a path.
        builtin: whether its target is the built-in one, which no --model names.
    """
    made_for = f"the target {config.target}" if config.target else "its target"
    made_for += " as dspark_mlx has it built in" if builtin else ""
    model = "" if builtin else f"--model {config.target or 'TARGET'} "
    models = f"{model}--drafter {name}"
    return (
        f"A drafter ({config.summary}) for speculative decoding on MLX. It was trained for "
        f"{made_for} and is of use with no other: it proposes {config.PROPOSES} of up to "
        f"{config.gamma} tokens, which the target verifies, so the output is the target's own."
        f"\n\n{_command(models)}"
    )


def target_text(name: str) -> str:
    """Two paragraphs that say what a target is and how it is run.

    Args:
        name: what --model is given: a Hub id or a path.
    """
    return (
        "A language model in MLX's format, for mlx-lm and, with a drafter that was trained for it, "
        f"for DSpark speculative decoding.\n\n{_command(f'--model {name}')}"
    )


def weights_text(bits: int, group_size: int) -> str:
    """A sentence that says how the weights are stored; 0 bits are plain ones."""
    if not bits:
        return "The weights are not quantised."
    return (
        f"The weights are quantised: {bits} bits in groups of {group_size}, where not stored "
        "otherwise."
    )


def _command(models: str) -> str:
    return f'```\n{_INSTALL}\npython -m dspark_mlx.generate {models} --prompt "Hello"\n```'
