"""Published weights to MLX: sources, recipe, plan and the run that writes them."""
