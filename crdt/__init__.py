"""The crdt room."""
