"""Optimizers by name, each with the states that a checkpoint holds of it."""
