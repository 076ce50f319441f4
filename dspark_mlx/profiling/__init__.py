"""Measures what rounds cost on this machine, and stores the results."""
