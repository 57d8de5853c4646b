"""What the members of a run agree on: who takes part, from which position, and how each operation ended (sans-IO).

`epoch` is the machine of one node; `epoch_events` what it is told and tells. An epoch comes about by `former` (the steps of its agreement) and `formation` (the rules:
who proposes, whom, from where), checked by `scrutiny` against what a node knows of itself (`standing`) and what a `lineage` proves; it holds the `layout` of its members. In
it operations run in `lanes`, each an `operation` that ends with a `certificate`; what an epoch's end cut off is cleared up by `settlement`, and members that wait for each other for ever are found by `deadlock`. `messages` are what members say to each other.
"""
