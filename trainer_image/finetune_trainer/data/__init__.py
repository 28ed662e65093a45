"""From rows that people wrote to memory-mapped token shards and the plan of which rows each step takes."""
