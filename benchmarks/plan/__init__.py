"""Plans against what happens: memory, tokens, steps, time, and what is published of other trainings."""
