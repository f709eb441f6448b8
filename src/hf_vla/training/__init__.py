"""Training: the trainer, parameter groups, callbacks, checkpoints and resuming."""
