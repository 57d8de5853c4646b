"""What the tests of the command line share."""

import os

import pytest


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, and none of the caller's settings."""
    for name in list(os.environ):
        if name.startswith(("NODED_", "XDG_", "STATE_DIR", "RUNTIME_DIR")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    return tmp_path
