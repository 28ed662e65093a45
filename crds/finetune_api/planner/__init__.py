"""Arithmetic about a job that needs neither torch nor a cluster."""
