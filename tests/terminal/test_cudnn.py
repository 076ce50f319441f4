"""Advice to users of MLX's CUDA backend."""

from __future__ import annotations

from types import SimpleNamespace

import mlx.core as mx
import pytest

from dspark_mlx.terminal import cudnn


@pytest.mark.parametrize(
    ("device", "cuda", "switch", "told"),
    [
        (mx.DeviceType.gpu, True, None, True),
        (mx.DeviceType.gpu, True, "0", False),
        (mx.DeviceType.gpu, True, "1", False),
        (mx.DeviceType.gpu, False, None, False),
        (mx.DeviceType.cpu, True, None, False),
    ],
)
def test_slow_attention_is_told_once_and_only_where_it_is(device, cuda, switch, told, monkeypatch):
    """Speculation at half of plain decoding's speed on a GPU, with no word of why; a Mac's user or
    one who has chosen told all the same."""
    monkeypatch.setattr(cudnn.mx, "default_device", lambda: SimpleNamespace(type=device))
    monkeypatch.setattr(cudnn.mx.cuda, "is_available", lambda: cuda)
    monkeypatch.delenv(cudnn.SWITCH, raising=False)
    if switch is not None:
        monkeypatch.setenv(cudnn.SWITCH, switch)
    advice = cudnn.advice()
    assert (advice is not None) == told
    assert advice is None or advice.endswith(f"export {cudnn.SWITCH}=0")
