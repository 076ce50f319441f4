"""The local HTTP server: OpenAI's and Anthropic's dialects over one decoder."""
