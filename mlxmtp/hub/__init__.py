"""Names of models, and where their files are."""
