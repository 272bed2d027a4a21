"""Training: step, losses, optimizers, sharding, checkpoints and the loop."""
