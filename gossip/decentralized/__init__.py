"""Learning without agreement: protocols in which nodes exchange models with a few others (`protocol` is their plug-in point).

* Contract: `protocol` (what a protocol is told and what it asks for), `arithmetic` (sums in one fixed order).
* On real peers: `driver` (one core at work), over `neighbours` (who takes part) and `delivery` (messages to and from them, as
  `wire` has their bytes and `room` bounds what waits).
* For protocols with neighbours: `topology` (graphs that all nodes derive alike, and their weights), `rounds` (the base of those with
  rounds: a barrier with a deadline, both ends of an edge, catching up; `round_messages` are what they say, `inbox` is what a node
  keeps of its peers), `model_rounds` (those that exchange whole models and mix them by a rule).
* What is made of the models: `mixing` (mean, median, trimmed mean), `variance_correction` (for models that began apart),
  `composition` (which protocol bears which of these).
* For tests: `rehearsal` (many cores of a protocol on a virtual clock, with a toy model),
  `conformance` (what each of them must hold; `hostile` has what liars send).
* For protocols without rounds: `free_running` (the base: legs one after another, others heard in between), `pairs` (those whose
  nodes meet two at a time), `exchange` (a swap of vectors on both sides or on neither), `session` (who has begun
  again is told from who was there before).
* Clocks and accounts: `poisson` (timers in units of a node's own gradients), `token_account` (how often a node may send),
  `graph_numbers` (what a graph costs those who gossip over it). `hearsay`: how far one member alone is believed to be ahead.
"""
