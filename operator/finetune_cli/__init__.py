"""`ftj`, the command line: also `kubectl ftj`."""
