"""What the tests of native.cpp share."""

import pytest

from adadecode.kernels.library import load_library


@pytest.fixture
def uncompiled(monkeypatch, tmp_path):
    """No library is loaded yet, and the cache folder is empty; both are as they were after the test."""
    load_library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    yield tmp_path
    load_library.cache_clear()
