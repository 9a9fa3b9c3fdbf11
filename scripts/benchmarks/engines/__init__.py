"""An engine in a process and an environment of its own, behind one protocol."""
