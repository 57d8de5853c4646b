"""Ask the gateway for a way in: port mapping by PCP, NAT-PMP or UPnP.

Cores (no I/O, no clock): `pcp` and `natpmp` turn requests and answers into bytes and back; `mapping_core` decides what to ask
next and when. Drivers: `portmap.PortMapper` is the way in; beneath it `methods` (one interface for the three), `gateway` (who is the
router), `gateway_socket` (datagrams to it) and `upnp` (miniupnpc in a thread).
"""
