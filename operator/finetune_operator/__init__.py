"""Watches FineTuneJobs, decides what should exist, and applies it."""
