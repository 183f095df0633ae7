"""One run of a recipe: checks before it, training, its summary, running it again, export."""
