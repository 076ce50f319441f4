"""DeepSeek V4 as a target: mlx-lm has no class for it."""
