"""Converts published drafters and targets to the folders that dspark_mlx loads."""
