"""How fast rows are checked, in how much memory, and how much is found of what was planted."""
