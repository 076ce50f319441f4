"""MLX's own kernels out of the macOS wheel, launched as MLX launches them."""
