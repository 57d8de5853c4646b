"""What of the lab runs always, and what only when all of it is asked for."""

import os

import pytest

slow = pytest.mark.skipif(
    os.environ.get("NODED_LAB") != "all", reason="takes long; NODED_LAB=all runs it"
)
