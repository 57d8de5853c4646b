"""Where no lab can be had, its tests are skipped, and say why."""

import pytest

from tests.lab.namespaces import why_not


@pytest.fixture(autouse=True)
def _needs_namespaces(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real") is not None and (reason := why_not()):
        pytest.skip(reason)
