"""DFlash 2: a parallel backbone with convolutions, and a selector of tokens."""
