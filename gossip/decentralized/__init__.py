"""Learning without agreement: protocols in which nodes exchange models with a few others (`protocol` is their plug-in point).

* Contract: `protocol` (what a protocol is told and what it asks for), `arithmetic` (sums in one fixed order).
* On real peers: `wire` (one message with its vectors as bytes).
"""
