"""One step of training: batches, network, objective, optimiser."""
