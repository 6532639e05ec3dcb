"""`scripts/bench [NAME]`: list the benchmarks, or run one; options after a name are that one's."""

import importlib
import sys
from typing import Final

BENCHMARKS: Final = {
    "testnet": "the default network without orders: time to finality, memory, processor time",
    "pbft": "a PBFT chain of real processes under load, by stage; --help tells its options",
    "orders": "a signed order to its final commit on the consortium chain, by real processes",
    "meters": "ten thousand meters through concentrators, Mosquitto and four oracle processes",
    "simulator": "virtual seconds per second of a simulated chain, and schedules per second",
    "ledger": "processor time of a transaction in each stage of a replica, with 10,000 accounts",
    "snapshot": "a new replica joins by taking the state over, and by replaying 2,000 blocks",
    "primitives": "state tree, signatures, VRF, auction and packing, each beside a plain reference",
}


def main(arguments: list[str]) -> int:
    """Run the named benchmarks; without a name, list them."""
    if len(arguments) > 1 and arguments[1].startswith("-") and arguments[0] in BENCHMARKS:
        importlib.import_module(f"gridtokenx.lab.bench.{arguments[0]}").run(arguments[1:])
        return 0
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
