"""An emulator of Metal compute kernels on an x86-64 CPU, for tests alone.

Two ways lead to one runtime. `air` takes a stock kernel out of a metallib, as Apple's compiler
left it (LLVM bitcode). `msl` takes the text that `mx.fast.metal_kernel` would hand to that
compiler, read by clang with the headers in `shim/`. `runtime/` runs either lane by lane and
checks every access.
"""
