"""Targets: mlx-lm models whose forward also gives hidden states, the taps."""
