"""Training: arguments, parameter groups, trainer, recipes."""
