"""What people train: one file a run, readable top to bottom."""
