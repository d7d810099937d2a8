"""What the tests of exit heads share."""

import pytest

from tests.models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()
