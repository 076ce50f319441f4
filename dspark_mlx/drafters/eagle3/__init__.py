"""Eagle3: one layer that drafts a block token by token from the target's features."""
