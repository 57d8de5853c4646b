"""State that all members hold bit for bit the same, and how one that lacks it gets it.

`handover` brings a member up to date with the rounds of a run; `state_sync` keeps other tensors in parity, and `declaration` says whose copy counts. Both fetch what is missing in blocks
from all who have it (`gossip.blocks`).
"""
