"""What every test shares: how Hypothesis searches, and what may run beside what.

The suite must say the same thing twice, so by default examples come from a fixed seed and no test has a wall-clock deadline
(a busy two-core machine is not a bug). A search for new counter-examples is one option away:

    make test ARGS="--hypothesis-profile=explore tests/crdt"
"""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    database=None,
    # Says how fast data is generated, in wall-clock time: noise on a shared machine.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "explore", parent=settings.get_profile("repeatable"), derandomize=False, max_examples=2000
)
settings.load_profile("repeatable")


# Several workers (`make test`): these are asked and told only where pytest-xdist is at work.


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    from tests import workers

    return workers.count()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from tests import workers

    return workers.RealOneByOne(config, log)


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):
        from tests import workers

        items.sort(key=lambda item: not workers.real(item.path))


def pytest_runtest_setup(item):
    if not hasattr(item.config, "workerinput"):
        return
    from tests import workers

    if not workers.real(item.path):
        workers.be_polite()
