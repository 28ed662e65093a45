"""What should be, given what is: pure functions. No I/O, no clock, no kopf."""
