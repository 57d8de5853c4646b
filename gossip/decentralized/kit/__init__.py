"""For tests of protocols, those of others included: `python -m gossip.decentralized.kit.conformance NAME`.

`rehearsal`: many cores of a protocol on a virtual clock, with a toy model. `conformance`: what each of them must hold. `hostile`: what liars send.
"""
