"""The DSpark head that DeepSeek V4's checkpoints have inside, as a drafter."""
