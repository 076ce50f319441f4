"""Kernels for Apple's GPUs, as source that MLX compiles on the user's machine.

`rows` has the bits of one-row steps, `tiles` is made for speed. docs/metal.md says how they are
tested without a GPU.
"""
