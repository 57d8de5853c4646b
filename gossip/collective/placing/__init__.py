"""How fast members and links are, and how members are placed because of it.

`rhythm` tells from the timing of operations who has become slow, and what each link carries; `probing` measures links that nobody has used. `arranging` makes of that the layout of an
epoch: sites, and the order in a ring whose slowest link is as fast as can be (`ring_order`).
"""
