"""Copies as drafts: what the text says next where it said the same before."""
