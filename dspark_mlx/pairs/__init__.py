"""Which drafter belongs to which target, and where both are on disk."""
