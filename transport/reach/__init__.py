"""Being reachable, and knowing it: our addresses, what strangers can dial, how our NAT behaves, and how to say so.

`reach` is the driver that holds it together (`report` and `log` say what it knows). Evidence: `interfaces` over `netlink`, `observed` addresses asked
for by `outside`, `dial_back` by `dial_back_rules`, `openness`. Conclusions (sans-IO): `reachability`, `advertising`, `diagnosis`.
"""
