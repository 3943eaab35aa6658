"""Who is here: joining a run, and noticing who has left it."""
