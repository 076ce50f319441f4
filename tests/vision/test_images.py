"""Images among the parts of messages: what is read, and what is refused before anything."""

from __future__ import annotations

import base64
import io

import pytest
from helpers.loadable import loadable
from helpers.tiny_vision import picture

import dspark_mlx
from dspark_mlx import InputError, generate
from dspark_mlx.vision import images
from dspark_mlx.vision.images import take_images

Image = pytest.importorskip("PIL.Image", reason="Pillow comes with the extra vision")


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Reading needs Pillow alone."""
    monkeypatch.setattr(images, "find_spec", lambda name: name)


def message(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": "hello"}]}]


def url_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_the_ways_to_give_an_image_are_one(tmp_path):
    """A path that is taken for data, or a message that is changed."""
    image = picture(3)
    image.save(tmp_path / "a.png")
    url = url_of(image)
    parts = [
        {"type": "image", "image": image},
        {"type": "image", "image": tmp_path / "a.png"},
        {"type": "image", "image": str(tmp_path / "a.png")},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image_url", "image_url": url},
    ]
    for part in parts:
        given = message(part)
        taken, found = take_images(given)
        assert [each.tobytes() for each in found] == [image.tobytes()]
        assert taken == message({"type": "image"})
        assert given == message(part)


@pytest.mark.parametrize("prompt", ["hello", [1, 2], [], [{"role": "user", "content": "hello"}]])
def test_other_prompts_stay(prompt):
    """Text that is taken for messages."""
    assert take_images(prompt) == (prompt, [])


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {"url": "https://x.org/a.png"}}, "fetched"),
        ({"type": "image_url", "image_url": {"url": "/etc/passwd"}}, "the URL"),
        ({"type": "image_url"}, "the URL None"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,abc"}}, "base64"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,a-b"}}, "damaged"),
        ({"type": "image_url", "image_url": {"url": "data:;base64,aGVsbG8="}}, "no image"),
        ({"type": "image", "image": "missing.png"}, "no file"),
        ({"type": "image", "image": 7}, "found 7"),
        ({"type": "image"}, "without an image"),
    ],
)
def test_what_is_no_image_is_refused(part, says):
    """A file that a client names, a fetch, or an error of Pillow."""
    with pytest.raises(InputError, match=r"messages\[0\]\.content\[0\]: found") as caught:
        take_images(message(part))
    assert says in str(caught.value)


def test_a_damaged_file_is_refused_before_the_model(tmp_path):
    """A minute of loading before the flag is found wrong."""
    path = tmp_path / "a.png"
    path.write_bytes(b"no image")
    flags = ["--model", str(tmp_path / "none"), "--prompt", "a", "--image", str(path)]
    with pytest.raises(InputError, match=r"--image: found .*a\.png, which is no image"):
        generate.main(flags)


def test_without_the_extra_a_line_says_so(monkeypatch, tmp_path):
    """ModuleNotFoundError."""
    monkeypatch.setattr(images, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"no mlx-vlm.*\[vision\]"):
        take_images(message({"type": "image", "image": picture(3)}))
    with pytest.raises(InputError, match="--image: found an image, and no mlx-vlm"):
        generate.main(["--prompt", "a", "--image", str(tmp_path / "a.png")])


def test_targets_of_other_families_say_so(tmp_path):
    """An image that a text model is never shown."""
    folder = loadable(tmp_path / "target")
    pytest.importorskip("mlx_vlm", reason="the extra vision is not installed")
    template = "{% for m in messages %}{% for p in m['content'] %}{{ p['type'] }}{% endfor %}|"
    with (folder / "chat_template.jinja").open("w") as file:
        file.write(template + "{% endfor %}")
    decoder = dspark_mlx.load(folder, drafter=False)
    with pytest.raises(InputError, match="images for a target of llama"):
        decoder.stream(message({"type": "image", "image": picture(3)}))
