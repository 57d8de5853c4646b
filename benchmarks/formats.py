"""How fast wire formats encode and decode, and how many bytes they need.

CPU time of one core, as JSON lines and a table; GiB/s counts the float32 side. Normal values; the error
is the rms of what decoding gives less what was encoded, as a share of the values' own rms.

    python benchmarks/formats.py --mib 16 --repeats 7
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gossip.collective.formats.registry import FORMATS
from gossip.collective.formats.wire_format import WireFormat
from transport.identity import NodeId

SENDER = NodeId(bytes(32))


def cpu_s(work: Callable[[], object], repeats: int) -> float:
    """Median CPU seconds of a call, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(name: str, form: WireFormat, values: np.ndarray, repeats: int) -> dict[str, object]:
    buffer = np.empty(form.encoded_bytes(values.size), np.uint8)
    out = np.empty_like(values)
    size = form.encode_into(values, buffer)
    encoded = buffer[:size]
    form.decode_untrusted_into(encoded, out, sender=SENDER)
    gib = values.nbytes / 2**30
    encoding_s = cpu_s(lambda: form.encode_into(values, buffer), repeats)
    decoding_s = cpu_s(lambda: form.decode_untrusted_into(encoded, out, sender=SENDER), repeats)
    return {
        "format": name,
        "bytes_per_value": round(size / values.size, 4),
        "error": round(float(np.sqrt(np.mean(np.square(out - values, dtype=np.float64)))), 5),
        "encode_gib_per_cpu_s": round(gib / encoding_s, 2),
        "decode_gib_per_cpu_s": round(gib / decoding_s, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    values = np.random.default_rng(0).standard_normal(arguments.mib << 18).astype(np.float32)
    rows = []
    for name, form in FORMATS.items():
        row = measure(name, form, values, arguments.repeats)
        rows.append(row)
        print(json.dumps(row))
    print(f"{'format':>10} {'B/value':>8} {'error':>8} {'encode':>8} {'decode':>8}  GiB per CPU-s")
    for row in rows:
        print("{:>10} {:>8} {:>8} {:>8} {:>8}".format(*row.values()))


if __name__ == "__main__":
    main()
