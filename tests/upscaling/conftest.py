"""Fixtures of the tests of upscaling."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The pictures are too small to share out: a second thread would mostly wait."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
