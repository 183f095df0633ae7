"""From a recipe's words to objects: images, models, terms, optimizer, and the settings measured for a machine."""
