"""Reads GGUF files: header, blocks, tokenizer, model families."""
