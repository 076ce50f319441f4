"""Finds which drafter belongs to a target, and where both are on disk."""
