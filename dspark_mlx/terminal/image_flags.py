"""--image, and the message of a user that shows images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..vision.images import check_installed, read_image


def add_image_flag(parser: argparse.ArgumentParser, shown_by: str) -> None:
    """Add --image.

    Args:
        parser: changed in place.
        shown_by: which message shows the image, for the help.
    """
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help=f"image that {shown_by} shows, repeatable; needs the extra vision",
    )


def read_images(paths: Sequence[str], where: str = "--image") -> list[Any]:
    """The images of files, as Pillow's.

    Args:
        paths: of the files.
        where: names the flag or command in errors.

    Raises:
        InputError: the extra is not installed, or a file is no image.
    """
    if paths:
        check_installed(where)
    return [read_image(where, path) for path in paths]


def user_message(text: str, images: Sequence[Any]) -> dict[str, Any]:
    """A user's message with images in front of its text."""
    if not images:
        return {"role": "user", "content": text}
    parts = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
