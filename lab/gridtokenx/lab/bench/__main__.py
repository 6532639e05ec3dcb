"""`scripts/bench [NAME]`: list the benchmarks, or run one; options after a name are that one's."""

import importlib
import sys
from types import ModuleType
from typing import Final

import click

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
WITH_OPTIONS: Final = ("pbft",)


def main(arguments: list[str]) -> int:
    """Run the named benchmarks; without a name, list them."""
    if arguments in ([], ["--help"], ["-h"]):
        _list()
        return 0
    name, options = arguments[0], arguments[1:]
    if name in WITH_OPTIONS and options and options[0].startswith("-"):
        return _run_with(name, options)
    for argument in arguments:
        if argument in BENCHMARKS:
            continue
        option = argument.startswith("-")
        alone = " or ".join(WITH_OPTIONS)
        what = (
            f"only {alone} takes options, alone"
            if option
            else f"no benchmark is called {argument!r}"
        )
        print(f"error: {what}", file=sys.stderr)
        _list()
        return 2
    for argument in arguments:
        _module(argument).run()
    return 0


def _run_with(name: str, options: list[str]) -> int:
    try:
        _module(name).run(options)
    except click.ClickException as error:
        print(f"error: {error.format_message()}", file=sys.stderr)
        return 2
    return 0


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"gridtokenx.lab.bench.{name}")


def _list() -> None:
    for name, what in BENCHMARKS.items():
        print(f"{name:<12} {what}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
