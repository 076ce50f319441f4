"""Checkpoint folders: configurations, tensors, quantisation, the Hub."""
