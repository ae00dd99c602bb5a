"""Training: the loss, the optimizers, the loop, evaluation and metrics."""
