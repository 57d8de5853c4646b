"""The tree is that of RFC 6962, also when it is put together from pages."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossip.blocks.merkle import PAGE, leaf_hash, page_roots, root_of, tree_root

# From the reference implementation's test vectors (certificate-transparency, merkletree tests).
INPUTS = [
    bytes.fromhex(text)
    for text in (
        "", "00", "10", "2021", "3031", "40414243", "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


@pytest.mark.parametrize("count", range(1, 9))
def test_the_published_vectors(count: int) -> None:
    assert root_of([leaf_hash(data) for data in INPUTS[:count]]).hex() == ROOTS[count - 1]


def test_no_leaves() -> None:
    assert root_of([]) == hashlib.sha256(b"").digest()


def by_the_book(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, as it is written there."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while 2 * split < len(leaves):
        split *= 2
    parts = by_the_book(leaves[:split]) + by_the_book(leaves[split:])
    return hashlib.sha256(b"\1" + parts).digest()


@given(st.integers(1, 40))
def test_any_number_of_leaves(count: int) -> None:
    leaves = [number.to_bytes(32, "big") for number in range(count)]
    assert tree_root(leaves) == by_the_book(leaves)


@pytest.mark.parametrize("count", [PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 3 * PAGE + 7])
def test_pages_are_subtrees(count: int) -> None:
    leaves = [number.to_bytes(32, "big") for number in range(count)]
    assert root_of(leaves) == tree_root(page_roots(leaves)) == by_the_book(leaves)


def test_a_node_is_no_block() -> None:
    left, right = leaf_hash(b"left"), leaf_hash(b"right")
    assert leaf_hash(left + right) != tree_root([left, right])
