"""Homes of roles that an operator runs: keys, settings that teach, enrolment requests.

::

    HOME/config.toml                     every setting with its help; the given ones filled in
    HOME/keys/                           the identity, encrypted
    HOME/data/                           of nodes and gateways
    HOME/genesis/CHAIN.json              what is trusted of each chain
    HOME/genesis/CHAIN-authority.pem     who admits to a permissioned chain; comes from there
    HOME/genesis/CHAIN-revocations.pem   whom it no longer admits, if given
    HOME/CHAIN-request.pem               goes to the authority, which answers with
    HOME/CHAIN-certificate.pem           the certificate

Law of the file: everything is checked before anything is written, and what could not be finished is
taken away again; a home that has a `config.toml` is whole.
"""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gridtokenx.core.addresses import address
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Ed25519Signer
from gridtokenx.host.addresses import HostPort, NodeAddress
from gridtokenx.host.certificates import RevocationList, Role, load_certificate, subject_of
from gridtokenx.host.chains import ChainFacts, faced, read_chain
from gridtokenx.host.config import (
    Settings,
    explain,
    fields,
    load_with_origin,
    plain_values,
)
from gridtokenx.host.enrolment import check_name, make_request, request_pem
from gridtokenx.host.files import read_file, write_file
from gridtokenx.host.keyfile import public_key_of
from gridtokenx.lab.network import settings_from
from gridtokenx.lab.passwords import create_ring, open_ring

CONFIG: Final = "config.toml"
IDENTITY: Final = "identity"
PERMISSIONED: Final = ("consortium", "oracle")
_FILES: Final = ("genesis", "authority", "revocations", "certificate")


@dataclass(frozen=True, slots=True)
class HomeKind:
    """What is special about a role's home."""

    command: str
    """Words of `gtx` that run the role."""
    schema: type[Settings]
    chain: str = ""
    """Of a node; empty for clients, whose settings have a table for each chain."""
    afterwards: tuple[str, ...] = ()
    """What an operator does once it runs, a line each."""

    def prefix(self, chain: str) -> str:
        """What stands before a chain's settings."""
        return "" if self.chain else f"{chain}."

    @property
    def chains(self) -> tuple[str, ...]:
        """The chains that the role talks to."""
        if self.chain:
            return (self.chain,)
        tables = [field.path[0] for field in fields(self.schema) if field.path[-1] == "genesis"]
        return tuple(tables)

    def from_network(self, path: Path | None) -> dict[str, str]:
        """What a network's public facts fill in, by `Field.parameter`.

        Raises:
            LocalFault: the file cannot be used.
        """
        if path is None:
            return {}
        known = {field.key: field.parameter for field in fields(self.schema)}
        found = settings_from(path, self.chains, node=bool(self.chain))
        return {known[key]: text for key, text in found if key in known}

    @property
    def role(self) -> Role:
        """What its enrolment requests ask for."""
        return Role.PEER if self.chain else Role.CLIENT


@dataclass(frozen=True, slots=True)
class Given:
    """What the operator said."""

    flags: Mapping[str, str]
    """By `Field.parameter`."""
    environment: Mapping[str, str]
    name: str
    """Of the holder, in certificates."""
    development: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    """A home that can be made."""

    kind: HomeKind
    given: Given
    home: Path
    values: dict[str, object]
    """What `config.toml` says, by `Field.key`."""
    copies: dict[str, Path]
    """What is copied in: target below the home, source."""
    facts: dict[str, ChainFacts]
    keys: Path | None
    """Keys that are there already."""
    password_file: Path | None
    missing: dict[str, str]
    """What the authority of a chain has to send yet, below the home, by chain."""


@dataclass(frozen=True, slots=True)
class MadeHome:
    """A home that was made, and what remains to be done."""

    home: Path
    identity: bytes
    chain_ids: dict[str, bytes]
    requests: tuple[str, ...]
    steps: tuple[str, ...]

    def told(self) -> str:
        """For the operator."""
        lines = [f"home         {self.home}"]
        lines += [f"chain        {name} {chain.hex()}" for name, chain in self.chain_ids.items()]
        lines += [f"identity     {address(self.identity)}", f"             {self.identity.hex()}"]
        lines += ["", "next steps"]
        for number, step in enumerate(self.steps, start=1):
            first, *rest = step.split("\n")
            lines += [f"  {number}. {first}", *(f"       {line}" for line in rest)]
        return "\n".join(lines)


def make_home(kind: HomeKind, home: Path, given: Given) -> MadeHome:
    """Make the home of a role.

    Raises:
        LocalFault: something is there already, or what was given cannot be used.
    """
    plan = _plan(kind, home, given)
    existed = home.exists()
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _write(plan)
    except OSError as error:
        _remove(home, existed)
        raise LocalFault(f"{home}: cannot be made: {error.strerror}") from None
    except BaseException:
        _remove(home, existed)
        raise


def _remove(home: Path, existed: bool) -> None:  # noqa: FBT001 - private, of two callers
    if not existed:
        shutil.rmtree(home, ignore_errors=True)
        return
    for path in home.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# -- checking --------------------------------------------------------------------------------------


def _plan(kind: HomeKind, home: Path, given: Given) -> _Plan:
    _check_empty(home)
    check_name(given.name)
    own = _own_values(kind)
    stand_ins = {key.replace(".", "_"): str(value) for key, value in own.items()}
    settings, origin = load_with_origin(
        kind.schema, flags={**stand_ins, **given.flags}, environment=given.environment
    )
    said = {key for key, source in origin.items() if source != "default"}
    said -= {key for key in own if key.replace(".", "_") not in given.flags}
    values: dict[str, object] = dict(own)
    for key, value in plain_values(settings).items():
        if key in said and value is not None:
            values[key] = value.absolute() if isinstance(value, Path) else value
    _check_addresses(values)
    facts = _read_chains(kind, values)
    copies, missing = _gather(kind, values, said, facts)
    keys = values["keys"] if "keys" in said else None
    password_file = values.get("keys_password_file")
    assert keys is None or isinstance(keys, Path), "as the schema says"
    assert password_file is None or isinstance(password_file, Path), "as the schema says"
    return _Plan(kind, given, home, values, copies, facts, keys, password_file, missing)


def _own_values(kind: HomeKind) -> dict[str, object]:
    """What the home itself decides, as paths below it."""
    known = {field.key for field in fields(kind.schema)}
    values: dict[str, object] = {"keys": Path("keys"), "key": IDENTITY, "data": Path("data")}
    for chain in kind.chains:
        prefix = kind.prefix(chain)
        if chain in PERMISSIONED:
            values[f"{prefix}certificate"] = Path(f"{chain}-certificate.pem")
            values[f"{prefix}authority"] = Path("genesis") / f"{chain}-authority.pem"
    return {key: value for key, value in values.items() if key in known}


def _check_empty(home: Path) -> None:
    if home.exists() and not home.is_dir():
        raise LocalFault(f"{home}: is no directory")
    if home.is_dir() and any(home.iterdir()):
        what = "holds a home already" if (home / CONFIG).exists() else "is not empty"
        raise LocalFault(f"{home}: {what}; nothing is overwritten: choose another directory")


def _check_addresses(values: Mapping[str, object]) -> None:
    """Refuse now what would be refused at start."""
    for key, value in values.items():
        match key.rpartition(".")[2], value:
            case (("listen" | "http"), str()):
                HostPort.parse(value)
            case (("peers" | "nodes"), tuple()):
                for each in value:
                    NodeAddress.parse(each)
            case _:
                pass


def _read_chains(kind: HomeKind, values: Mapping[str, object]) -> dict[str, ChainFacts]:
    facts: dict[str, ChainFacts] = {}
    for chain in kind.chains:
        path = values[f"{kind.prefix(chain)}genesis"]
        assert isinstance(path, Path), "as the schema says"
        facts[chain] = read_chain(chain, path)
    if len(facts) == 3:
        for each in facts.values():
            faced(each, facts.values())
    return facts


def _gather(
    kind: HomeKind, values: dict[str, object], said: set[str], facts: Mapping[str, ChainFacts]
) -> tuple[dict[str, Path], dict[str, str]]:
    """Public files that are copied in, and what has to come yet; `values` then name the copies."""
    copies: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for chain in facts:
        prefix = kind.prefix(chain)
        _check_authority(values, prefix, said)
        for what in _FILES:
            key, target = f"{prefix}{what}", _target(chain, what)
            if key not in said:
                continue
            source = values[key]
            assert isinstance(source, Path), "as the schema says"
            copies[target], values[key] = source, Path(target)
        if chain in PERMISSIONED and f"{prefix}certificate" not in said:
            missing[chain] = _target(chain, "certificate")
    return copies, missing


def _target(chain: str, what: str) -> str:
    match what:
        case "genesis":
            return f"genesis/{chain}.json"
        case "certificate":
            return f"{chain}-certificate.pem"
        case _:
            return f"genesis/{chain}-{what}.pem"


def _check_authority(values: Mapping[str, object], prefix: str, said: set[str]) -> None:
    """Certificates that were given are what they should be."""
    path, revocations = values.get(f"{prefix}authority"), values.get(f"{prefix}revocations")
    if f"{prefix}authority" in said and isinstance(path, Path):
        authority = load_certificate(path)
        if subject_of(authority).role is not Role.AUTHORITY:
            raise LocalFault(f"{path}: is no authority's certificate")
        if isinstance(revocations, Path):
            RevocationList.load(revocations, authority)
    elif isinstance(revocations, Path):
        raise LocalFault(f"{revocations}: a revocation list is checked by the authority: give both")


# -- writing ---------------------------------------------------------------------------------------


def _write(plan: _Plan) -> MadeHome:
    home, values = plan.home, plan.values
    seed, identity = _identity(plan)
    for target, source in plan.copies.items():
        write_file(home / target, read_file(source))
    if isinstance(data := values.get("data"), Path):
        (home / data).mkdir(parents=True, exist_ok=True, mode=0o700)
    requests = tuple(f"{chain}-request.pem" for chain in plan.missing)
    for chain, file in zip(plan.missing, requests, strict=True):
        request = make_request(seed, plan.given.name, plan.kind.role, chain)
        write_file(home / file, request_pem(request))
    write_file(home / CONFIG, _config(plan).encode(), mode=0o600)
    chain_ids = {name: facts.chain_id for name, facts in plan.facts.items()}
    return MadeHome(home.absolute(), identity, chain_ids, requests, tuple(_steps(plan)))


def _identity(plan: _Plan) -> tuple[bytes, bytes]:
    """The secret (empty where nothing has to be signed) and the public key of the identity."""
    name = str(plan.values["key"])
    if plan.keys is not None:
        public_key = public_key_of(plan.keys / f"{name}.key")
        if not plan.missing:
            return b"", public_key
        return open_ring(plan.keys, plan.password_file).seed(name), public_key
    ring = create_ring(plan.home / "keys", plan.password_file, development=plan.given.development)
    ring.generate(name)
    seed = ring.seed(name)
    return seed, Ed25519Signer(seed).public_key


def _config(plan: _Plan) -> str:
    command = f"gtx {plan.kind.command}"
    return (
        f"# Settings of `{command}`, written by `{command} init`.\n"
        "#\n"
        "# Flags win over the environment (GTX_...), which wins over this file, which wins over the\n"
        "# defaults; `--print-config` shows what is in force, and why. Paths are relative to this\n"
        "# file. A line such as `#name = value` shows a default; take the # away to change it.\n\n"
        + explain(plan.kind.schema, plan.values)
    )


def _quoted(path: Path) -> str:
    """A path that can be pasted into a shell."""
    return shlex.quote(str(path))


def _steps(plan: _Plan) -> list[str]:
    home, kind = plan.home.absolute(), plan.kind
    steps: list[str] = []
    for chain, certificate in plan.missing.items():
        steps.append(
            f"send {_quoted(home / f'{chain}-request.pem')}\n"
            f"to the authority of the {chain} chain, who answers it with:\n"
            f"gtx ca issue {chain}-request.pem --authority DIR --chain {chain}"
        )
        awaited = [f"the certificate       {home / certificate}"]
        authority = _target(chain, "authority")
        if authority not in plan.copies:
            awaited.append(f"authority.pem         {home / authority}")
        steps.append("put what comes back here:\n" + "\n".join(awaited))
    where = ""
    if plan.keys is None and not plan.given.development and plan.password_file is None:
        where = " (the password of the keys comes from GTX_PASSWORD or --keys-password-file)"
    steps.append(f"start it{where}:\ngtx {kind.command} --config {_quoted(home / CONFIG)}")
    return [*steps, *kind.afterwards]
