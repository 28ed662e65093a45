"""One attempt at one stage: its standing, the next step, its start, its end and its cost."""
