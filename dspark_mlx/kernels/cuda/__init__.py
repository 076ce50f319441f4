"""Kernels for MLX's CUDA backend."""
