"""Targets: any mlx-lm model, made to show its hidden states; family files only where needed."""
