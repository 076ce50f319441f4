"""Gemma 4's assistants: drafters whose layers attend to keys and values of the target's layers."""
