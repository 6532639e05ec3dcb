"""`gtx stake`: what it refuses before anything is sent, and the proof that crosses two machines."""

from pathlib import Path

import pytest
from tests.unit.gtx_command import Gtx, gtx

from gridtokenx.core.addresses import address
from gridtokenx.core.keys import Ed25519Verifier
from gridtokenx.host.chains import read_chain
from gridtokenx.host.keyfile import public_key_of
from gridtokenx.lab.manifest import load_manifest
from gridtokenx.lab.testnet.initialise import initialise
from gridtokenx.lab.testnet.layout import Layout
from gridtokenx.public.staking.calls import holds_session_key

__all__ = ["gtx"]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a network that does not run."""
    home = tmp_path_factory.mktemp("net")
    manifest = home / "small.toml"
    manifest.write_text("[devices]\nhouseholds = 2\nprofile_days = 1\n")
    (home / "net").mkdir()
    initialise(Layout(home / "net", load_manifest(manifest)), lambda _line: None)
    return home / "net"


def test_a_proof_is_for_one_account_and_one_chain(gtx: Gtx, net: Path) -> None:
    keys, alice = net / "public-0" / "keys", public_key_of(net / "wallet" / "keys" / "alice.key")
    genesis = net / "genesis" / "public.json"
    said = gtx(
        *("stake", "prove", "--account", address(alice)),
        *("--genesis", genesis, "--session-keys", keys),
    ).done()
    key, proof = map(bytes.fromhex, said.strip().split(":"))
    assert key == public_key_of(keys / "identity.key")
    chain_id = read_chain("public", genesis).chain_id
    assert holds_session_key(Ed25519Verifier(), chain_id, alice, key, proof)
    assert not holds_session_key(Ed25519Verifier(), chain_id, key, key, proof)
    assert not holds_session_key(Ed25519Verifier(), bytes(32), alice, key, proof)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("bond", "--amount", "0"), "more than nothing"),
        (("bond", "--amount", "1.0000000001"), "9 decimals"),
        (("unbond", "--amount", "x"), "is no number"),
        (("stand",), "--session-keys, or --proof: one of the two"),
        (("stand", "--proof", "12:34"), "is not what `gtx stake prove` prints"),
        (("session-key", "--proof", ""), "is not what `gtx stake prove` prints"),
        (("stand", "--session-keys", "nowhere"), "nowhere: holds no keys"),
        (("nominate", "nobody"), "'nobody' is no address"),
        (("nominate", *["alice"] * 17), "17 candidates named; at most 16"),
    ],
)
def test_what_could_not_work_is_refused_at_once(
    gtx: Gtx, net: Path, words: tuple[str, ...], why: str
) -> None:
    command, *rest = words
    gtx("stake", command, "--from", "alice", "--home", net, *rest).refused(why)


def test_a_home_without_a_network_is_named(gtx: Gtx) -> None:
    gtx("stake", "show", "--home", "nowhere").refused("nowhere holds no testnet")
