"""What goes into a turn."""
