"""What the tests of exit heads share, and the saved model that those of model folders change."""

import shutil
from pathlib import Path

import pytest

from tests.folders import save_tiny_model
from tests.models import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("saved") / "model", num_layers=2, eos_token_id=2)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of the saved model, to be changed."""
    return Path(shutil.copytree(saved, tmp_path / "model"))
