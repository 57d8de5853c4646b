"""Write tokens: a store is accepted only from a node that has asked us about that key a short while ago.

Idea (BEP 5, BEP 44): the answer to a search for records carries a token; a store must bring it back. A writer thus
has to search for the key, which costs it more than the store costs us, and nobody can spray records over nodes
picked from a list. The token is bound to the asker's node id, which the connection proves, and to the key.

    token = BLAKE2b-128(key: secret of the period, data: node id | record key)

A period lasts 5 minutes and the last one's tokens still count, so one is good for 5 to 10. The secret of a period is the hash of our
signature over its number: nobody else can compute it, and nothing has to be kept or drawn.

A signer's connection is required as well (see `responder`), so the token is a second lock, not the only one.
"""

from __future__ import annotations

import hashlib
import hmac

from dht.record import Sign

TOKEN_BYTES = 16
PERIOD_S = 300.0
_DOMAIN = b"noded dht write token v1".ljust(32, b"\0")


class WriteTokens:
    """Gives tokens and recognises them; `now` is monotonic seconds."""

    def __init__(self, sign: Sign) -> None:
        self._sign = sign
        self._secrets: dict[int, bytes] = {}

    def give(self, node_id: bytes, key: bytes, now: float) -> bytes:
        """Return a token with which `node_id` may store under `key`."""
        return self._token(int(now // PERIOD_S), node_id, key)

    def good(self, token: bytes, node_id: bytes, key: bytes, now: float) -> bool:
        """Return whether `token` was given to `node_id` for `key` in this period or the last."""
        period = int(now // PERIOD_S)
        fresh = (self._token(each, node_id, key) for each in (period, period - 1))
        return any(hmac.compare_digest(token, each) for each in fresh)

    def _token(self, period: int, node_id: bytes, key: bytes) -> bytes:
        secret = self._secrets.get(period)
        if secret is None:
            signature = self._sign(_DOMAIN + period.to_bytes(8, "big", signed=True))
            secret = hashlib.sha256(signature).digest()
            kept = {each: value for each, value in self._secrets.items() if abs(each - period) <= 1}
            self._secrets = {**kept, period: secret}
        return hashlib.blake2b(node_id + key, key=secret, digest_size=TOKEN_BYTES).digest()
