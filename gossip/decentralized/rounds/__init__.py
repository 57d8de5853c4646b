"""For protocols with rounds: train, exchange models with this round's neighbours, mix (sans-IO).

`base`: a barrier with a deadline, both ends of an edge, catching up. `messages` are what nodes say, `inbox` is what a node keeps of its peers. `models`:
those that exchange whole models and mix them by a rule.
"""
