"""Measure: loss on a split, answers by greedy generation, base against tuned."""
