"""Content-addressed blocks: large data cut into hashed pieces, fetched from many holders at once.

An *artefact* is some files laid one after another, cut into blocks of 1 MiB. Its manifest names the files and the Merkle root over the
blocks; the artefact's id is the manifest's hash, so whoever knows 32 bytes can check everything that comes from anybody.

Sans-IO: `merkle` (the tree), `manifest` (what an artefact is), `bitmap` (who has what), `planner` (what to ask of whom), `turns` (who is served
next), `messages` (the wire), `library` (where blocks come from and go to). Drivers: `serve` and `fetch`, over `transport.bulk.pool`.
Errors: `gossip.blocks.errors`.
"""
