"""The node room."""
