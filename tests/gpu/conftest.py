"""What the tests of this folder leave on the device."""

import gc

import pytest
import torch


@pytest.fixture(autouse=True)
def _leave_no_graphs():
    yield
    gc.collect()
    torch.cuda.empty_cache()
