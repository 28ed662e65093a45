"""The trainer against its rivals: the same model, rows, precision and batch, in turns on one machine."""
