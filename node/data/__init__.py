"""Data sets: read from files that the operator points to, checked, split among nodes and drawn from; no torch, no network, no pickle.

* What the others agree on: `labelled` (examples with classes), `errors`, `files` (bounded reading, known checksums), `splits` (who trains on
  what), `sampling` (which examples make batch number i).
* Formats: `digits` (ships with scikit-learn), `idx` (MNIST, Fashion-MNIST), `cifar`, `femnist` (LEAF), `movielens`.
"""
