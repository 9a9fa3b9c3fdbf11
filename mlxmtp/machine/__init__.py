"""This machine: chip, memory and the speed it should reach."""
