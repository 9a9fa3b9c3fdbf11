"""Published weights to MLX: recipe, tasks, plan and the run that writes them."""
