"""`gtx verify`: does a node's disk hold what the rules make of its own blocks?"""

import tomllib
from pathlib import Path

import click

from gridtokenx.core.errors import LocalFault
from gridtokenx.host.chains import recognise_chain
from gridtokenx.lab.replay import Divergence, open_chain_store, replay


@click.command()
@click.option(
    "--home",
    "homes",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    multiple=True,
    help="A stopped node's directory; may be given several times.",
)
def command(homes: tuple[Path, ...]) -> int:
    """Re-execute a stopped node's chain from genesis and say where, if anywhere, it diverges.

    Checks every signature, every block's outcome, every stored proof of finality, the events, the
    stored state, and the invariants of all modules. The exit code is 0 if everything agrees, 1 if
    not.
    """
    return max(_verify(home) for home in homes)


def _verify(home: Path) -> int:
    genesis_path, data = _node_files(home)
    chain = recognise_chain(genesis_path)
    store = open_chain_store(data)
    blocks = transactions = proofs = 0
    broken: list[str] = []
    try:
        for replayed in replay(chain, store):
            blocks += 1
            transactions += len(replayed.executed.block.transactions)
            proofs += replayed.proved
            broken += replayed.broken
    except Divergence as divergence:
        click.echo(f"{home}: DIVERGES: {divergence}")
        return 1
    finally:
        store.close()
    for sentence in broken:
        click.echo(f"{home}: BROKEN INVARIANT: {sentence}")
    click.echo(
        f"{home}: {chain.name} chain, {blocks} blocks, {transactions} transactions, {proofs} proofs of "
        f"finality: {'invariants are broken' if broken else 'everything agrees'}"
    )
    return 1 if broken else 0


def _node_files(home: Path) -> tuple[Path, Path]:
    """The genesis file and the store of a node's home, from its configuration."""
    path = home / "config.toml"
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LocalFault(f"{path}: cannot be read: {error}") from None
    genesis, data = config.get("genesis"), config.get("data")
    if not isinstance(genesis, str) or not isinstance(data, str):
        raise LocalFault(f"{home}: is no node's home: its config.toml names no genesis and data")
    return home / genesis, home / data
