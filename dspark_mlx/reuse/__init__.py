"""Kept prompts: a later request that begins as an earlier one did need not read that part again."""
