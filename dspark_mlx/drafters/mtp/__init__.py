"""A target's own multi-token prediction head as its drafter."""
