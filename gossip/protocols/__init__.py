"""The protocols that noded brings along; each is one plug-in of `gossip.protocol`."""
