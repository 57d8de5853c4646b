"""The protocols that noded brings along, `diloco` and `averaging`; each is one plug-in of `gossip.protocol`."""
