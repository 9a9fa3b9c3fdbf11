"""The application without a terminal, for any front end: choose and open a model, answer, keep KV caches."""
