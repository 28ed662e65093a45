"""What people read: phase, conditions and progress."""
