"""How the workers agree: the four answers, the presets, the truth table, and the worker."""
