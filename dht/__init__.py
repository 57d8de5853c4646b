"""The dht room."""
