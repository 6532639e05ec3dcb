"""`scripts/bench [NAME]`: list the benchmarks, or run one."""

import importlib
import sys
from typing import Final

BENCHMARKS: Final = {
    "testnet": "the default network without orders: time to finality, memory, processor time",
    "orders": "a signed order to its final commit on the consortium chain, by real processes",
    "meters": "ten thousand meters through concentrators, Mosquitto and four oracle processes",
    "simulator": "virtual seconds per second of a simulated chain, and schedules per second",
    "primitives": "state tree, signatures, VRF, auction and packing, each beside a plain reference",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmarks; without a name, list them."""
    unknown = [name for name in arguments if name not in BENCHMARKS]
    if unknown or not arguments:
        for name in unknown:
            print(f"error: no benchmark is called {name!r}", file=sys.stderr)
        for name, what in BENCHMARKS.items():
            print(f"{name:<12} {what}")
        return 2 if unknown else 0
    for name in arguments:
        importlib.import_module(f"gridtokenx.lab.bench.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
