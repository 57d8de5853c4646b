"""The gossip room."""
