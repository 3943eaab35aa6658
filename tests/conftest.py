"""What all tests share."""

from hypothesis import settings

# The machine's load is not a property of the code, and a failure must be one that repeats.
settings.register_profile("shoal", deadline=None, derandomize=True)
settings.load_profile("shoal")
