"""How each named corpus is brought from a package registry: one file a kind."""
