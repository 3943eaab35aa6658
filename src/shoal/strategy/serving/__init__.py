"""Parameter servers: who computes what, who owns what, and what they say to each other."""
