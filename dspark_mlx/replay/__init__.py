"""Recorded rounds, replayed under any scheduler and speed profile without a model."""
