"""Optimizers by name. Each says which states it keeps for a parameter, and how they are read and written back."""
