"""Compares speculative with plain decoding, which take turns in one run."""
