"""Measuring what rounds cost on this machine, and keeping what was measured."""
