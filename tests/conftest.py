"""What every test shares: how Hypothesis searches.

The suite must say the same thing twice, so by default examples come from a fixed seed and no test has a wall-clock deadline
(a busy two-core machine is not a bug). A search for new counter-examples is one option away:

    make test ARGS="--hypothesis-profile=explore tests/crdt"
"""

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
