"""Speculative against plain decoding, interleaved in one run."""
