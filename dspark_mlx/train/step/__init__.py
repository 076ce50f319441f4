"""One training step: network, blocks, objective, optimiser."""
