"""For protocols without rounds: nobody waits for anybody (sans-IO).

* Bases: `free_running` (legs one after another, others heard in between), `pairs` (those whose nodes meet two at a time).
* Meeting: `exchange` (a swap of vectors on both sides or on neither), `session` (who has begun again is told from who was there before).
* Clocks and accounts: `poisson` (timers in units of a node's own gradients), `token_account` (how often a node may send), `graph_numbers` (what a graph costs
  those who gossip over it).
"""
