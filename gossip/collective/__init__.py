"""Exact collectives with no master.

A `call` says what is wanted, `choice` by which algorithm. `group` ties everything to the run's members: `calls` are what is to be done there, `talk` what members say to each other, each
through an `outgoing` stream. `dataplane` carries out a call over an epoch's links; `elements` adds values of a type. `first_error` says why several tasks of one operation failed.

The folders: `agreement` on who takes part and how each operation ended, the proof of which are certificates; `algorithms`, who sends what to whom and where it is added; `formats`, how values become
bytes; `links`, how these get from member to member; `placing`, how fast links are and how members are placed because of it; `state`, how members come to hold the same.
"""
