"""Run a recipe: data, phases, the training loop, checkpoints, evaluation, the result."""
