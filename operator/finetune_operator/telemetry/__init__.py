"""Metrics and logs. A leaf: it knows nothing of the rest."""
