"""A core on real peers: what the plug-in point says, carried out over the endpoint (trio drivers).

`driver` has one core at work. `neighbours`: who takes part. `delivery`: messages to and from them, as `wire` has their bytes and `room` bounds what
waits.
"""
