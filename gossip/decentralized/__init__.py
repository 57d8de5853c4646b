"""Learning without agreement: protocols in which nodes exchange models with a few others (`protocol` is their plug-in point).

* Contract: `protocol` (what a protocol is told and what it asks for), `arithmetic` (sums in one fixed order).
* For most of them: `topology` (graphs that all nodes derive alike, and their weights), `hearsay` (how far one member alone is believed to be ahead).

Folders:
    network        a core on real peers: the driver, who takes part, messages
    rounds         the base of protocols with rounds: a barrier with a deadline
    asynchronous   the bases of those without: legs, meetings of two, clocks
    mixing         what is made of the models, and which protocol bears which rule
    kit            for tests: rehearsal on a virtual clock, conformance, liars
"""
