"""Tiny models, packaged checkpoints and reference computations that the tests share."""
