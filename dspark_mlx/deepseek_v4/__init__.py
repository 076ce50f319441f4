"""Layers of DeepSeek V4, of which both the target and its embedded DSpark head are made."""
