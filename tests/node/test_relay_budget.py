"""What a relay has given away is remembered over restarts, and comes back with time."""

import logging

import pytest
import trio

from node.relay_budget import SAVE_S, keep_spent, load_spent, store_spent
from transport.relay.settings import RelaySettings

SETTINGS = RelaySettings(budget_bytes=10_000_000, budget_s=1000.0)
"""Ten thousand bytes come back each second."""


def test_what_was_spent_comes_back_evenly(tmp_path):
    path = tmp_path / "relay.json"
    assert load_spent(path, SETTINGS, now=0) == 0
    store_spent(path, 4_000_000, now=5000)
    assert load_spent(path, SETTINGS, now=5000) == 4_000_000
    assert load_spent(path, SETTINGS, now=5100) == 3_000_000
    assert load_spent(path, SETTINGS, now=9000) == 0
    assert load_spent(path, SETTINGS, now=10) == 4_000_000  # the clock was set back
    smaller = RelaySettings(budget_bytes=1_048_576, budget_s=1000.0)
    assert load_spent(path, smaller, now=5000) == 1_048_576
    assert [entry.name for entry in tmp_path.iterdir()] == ["relay.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"spent_bytes": "all", "at": 1}',
        b'{"spent_bytes": 5}',
        b'{"spent_bytes": 1, "at": 1}' + b" " * 2000,
    ],
)
def test_a_damaged_file_counts_as_nothing_spent_and_is_told(tmp_path, caplog, content):
    path = tmp_path / "relay.json"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert load_spent(path, SETTINGS, now=10) == 0
    assert "what this relay has spent is not known" in caplog.text


@pytest.mark.parametrize("spent", [-5, 10**30])
def test_figures_that_cannot_be_are_brought_into_the_budget(tmp_path, spent):
    path = tmp_path / "relay.json"
    path.write_text(f'{{"spent_bytes": {spent}, "at": 5}}')
    assert 0 <= load_spent(path, SETTINGS, now=5) <= SETTINGS.budget_bytes


async def test_it_is_saved_every_few_minutes_and_at_the_end(tmp_path, autojump_clock):
    path = tmp_path / "relay.json"
    spent = 0

    def saved() -> int:
        return load_spent(path, SETTINGS, now=0)  # before any save: nothing has come back

    async with trio.open_nursery() as nursery:
        await nursery.start(keep_spent, path, lambda: spent)
        await trio.sleep(2 * SAVE_S)
        assert not path.exists()  # nothing was carried
        spent = 1_000
        while not path.exists():  # written by a thread, for which the clock does not wait
            await trio.sleep(1)
        assert saved() == 1_000
        spent = 2_000
        nursery.cancel_scope.cancel()
    assert saved() == 2_000


async def test_a_disk_that_takes_nothing_is_told_once_and_survived(
    tmp_path, caplog, autojump_clock
):
    path = tmp_path / "gone" / "relay.json"
    asked = 0

    def spent() -> int:
        nonlocal asked
        asked += 1
        return asked

    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            await nursery.start(keep_spent, path, spent)
            while asked < 5:
                await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert caplog.text.count("cannot be saved") == 1
