"""What any front end does with a model: choose and open it, answer, keep what was read. No terminal."""
