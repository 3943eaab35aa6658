"""What all tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

# The machine's load is not a property of the code, and a failure must be one that repeats.
settings.register_profile("shoal", deadline=None, derandomize=True)
settings.load_profile("shoal")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch with one thread, as the workers have: the last bits of a result depend on it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
