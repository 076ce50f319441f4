"""Metal kernels without a Mac: an emulator, MLX's compiled kernels in it, and ours."""
