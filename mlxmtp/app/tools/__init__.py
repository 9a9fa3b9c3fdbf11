"""Tools that a model may call in `ask` and `chat`: a list of them, approval, and how calls are run."""
