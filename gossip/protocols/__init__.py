"""The protocols that noded brings along.

* Of certified means (`gossip.protocol`): `diloco` and `averaging`.
* Without agreement (`gossip.decentralized.protocol`): `dpsgd`, `epidemic`, `dfedsam`, `noloco`, `modest`, `token_walk`, `adpsgd`, `push_sum`, `dadao` (with `dadao_dynamics`), `a2cid2`, `partitioned`.
"""
