"""The boundary between a user's text and token ids: tokenizer, chat template, messages, prompts."""
