"""Takes images out of chat messages and reads them; nothing is fetched from a network."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..numbers import shown

_URL = '{"type": "image_url", "image_url": {"url": "data:image/..."}}'
_FORMS = f'{_URL}, or {{"type": "image", "image": ...}} with a path or a Pillow image'


def take_images(prompt: Any) -> tuple[Any, list[Any]]:
    """A prompt without its images, and the images as Pillow's, RGB, in the order of the prompt.

    Args:
        prompt: chat messages; other prompts come back as they are.

    Returns:
        Messages in which `{"type": "image"}` stands for each image, and the images.

    Raises:
        InputError: an image cannot be read, or mlx-vlm is not installed; the part is named.
    """
    images: list[Any] = []
    first = prompt[0] if isinstance(prompt, Sequence) and prompt else None
    if not isinstance(first, Mapping) and not hasattr(first, "model_dump"):
        return prompt, images
    return [_without(f"messages[{i}]", each, images) for i, each in enumerate(prompt)], images


def _without(where: str, message: Any, images: list[Any]) -> Any:
    if callable(getattr(message, "model_dump", None)):
        message = message.model_dump()
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list | tuple):
        return message
    parts = []
    for i, part in enumerate(content):
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            images.append(_image_of(f"{where}.content[{i}]", part))
            part = {"type": "image"}
        parts.append(part)
    return {**message, "content": parts}


def _image_of(where: str, part: Mapping[str, Any]) -> Any:
    check_installed(where)
    if part["type"] == "image":
        if "image" not in part:
            raise InputError(where, "a part without an image", _FORMS)
        return read_image(where, part["image"])
    url = part.get("image_url")
    url = url.get("url") if isinstance(url, Mapping) else url
    if not isinstance(url, str) or not url.startswith("data:"):
        expected = f"{_FORMS}; nothing is fetched from a network"
        raise InputError(where, f"the URL {shown(url)}", expected)
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise InputError(where, f"a URL that begins with {head[:60]}", "data in base64")
    try:
        return read_image(where, io.BytesIO(base64.b64decode(data, validate=True)))
    except binascii.Error as error:
        raise InputError(where, f"a URL whose data is damaged ({error})", "base64") from error


def check_installed(where: object) -> None:
    """Refuse an image where the extra `vision` is not installed.

    Raises:
        InputError: it says how to install it.
    """
    if find_spec("mlx_vlm") is None:
        hint = 'pip install ".[vision]", in a clone of the project'
        raise InputError(where, "an image, and no mlx-vlm", "this package, to read images", hint)


def read_image(where: object, source: Any) -> Any:
    """An image as Pillow's, RGB and upright.

    Args:
        where: names it in errors.
        source: a path, a file object, or an image of Pillow.

    Raises:
        InputError: there is no such file, or it is no image that Pillow reads.
    """
    # Pillow comes with the extra.
    from PIL import Image, ImageOps

    if not isinstance(source, str | Path | io.BytesIO | Image.Image):
        raise InputError(where, shown(source), _FORMS)
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    found = "data that is no image" if path is None else f"{path}, which is no image"
    if path is not None and not path.is_file():
        raise InputError(where, f"{path}, which is no file", "a file with an image")
    try:
        # What Pillow warns of, it refuses at twice that size.
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            image = source if isinstance(source, Image.Image) else Image.open(path or source)
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(where, f"{found} ({error})", "an image that Pillow reads") from error
