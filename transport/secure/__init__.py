"""From a raw connection to a sealed link between two proven identities.

`noise` is the key agreement, `handshake` what is said around it, `intro` what each side claims about itself, `first_flights` what makes a
recorded first flight worthless, `record` (sized by `record_size`) the encrypted data phase, `aegis` its cipher for long records; all sans-IO.
`link` is the driver; `processor` knows whether this machine can run that cipher.
"""
