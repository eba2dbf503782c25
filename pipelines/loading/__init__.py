"""From files to networks in memory, without a second copy: weights, recipes, and who stays loaded."""
