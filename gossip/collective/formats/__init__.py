"""Wire formats: how values of a collective become bytes (pure numpy, no input or output).

`wire_format` is the interface and the errors, `floats` has fp32, bf16 and fp16, `blocks` int8, int4 and E3M0 with one scale per
block, `packed` compresses the bytes of any of them; `registry` finds them by name.
"""
