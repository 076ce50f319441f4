"""Converts a DeepSeek V4 checkpoint, target and head in one pass, tensor by tensor."""
