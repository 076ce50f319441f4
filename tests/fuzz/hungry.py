"""A command of the fuzzer's own tests: takes memory or time without end, as its argument says."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    held = []
    while sys.argv[1] == "memory":
        held.append(b"x" * (1 << 24))
    while sys.argv[1] == "time":
        pass
