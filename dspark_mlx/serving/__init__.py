"""Runs many requests in one thread: a bounded queue, and a bounded buffer for each reader."""
