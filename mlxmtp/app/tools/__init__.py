"""Tools that a model may call in `ask` and `chat`: which there are, who allows their calls, how they are run."""
