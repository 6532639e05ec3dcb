"""The first words on a link: same chain, same genesis, and proof of who is speaking.

::

    dialer                                              listener
      Hello(version, chain, genesis, role, key,
            instance, nonce) ────────────────────────────>  refuses another chain at once
      <── Welcome(key, instance, nonce, signature)          signs both nonces and the certificate
      Prove(signature) ──────────────────────────────────>
      <── Accepted(twin) | Refused(reason, detail)

Law of the file: **a link is up only after both ends have signed, with their identity keys, the same
claim**: role, chain id, genesis, both nonces, both keys, and the hash of the certificate that the
listener's TLS session used. A machine in the middle has its own certificate, so its claim differs.

The **instance** is a random number that a process draws when it starts. Two processes that hold the
same key are told apart by it (see `twins`).

On links with certificates of an authority the same frames run, and in addition the key in the
certificate must be the key that signs. Ours differs from TLS with a public-key pin only in that the
public chain needs no authority at all.
"""

import secrets
from dataclasses import dataclass, field
from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, decode, encode
from gridtokenx.core.errors import BadSignature, RemoteFault
from gridtokenx.core.keys import Domain, Signer, Verifier, sha256, signed_bytes
from gridtokenx.core.types import (
    Hash32,
    Index16,
    Millis,
    PublicKey,
    ShortText,
    SignatureBytes,
    Text,
    UInt63,
)

LINK_VERSION: Final = 2
MAX_CONTROL_BYTES: Final = 2048
INSTANCE_BYTES: Final = 16
OURSELVES: Final = "that-is-us"
"""The reason why we do not link to an address that is our own."""

IN_USE: Final = "identity-in-use"
"""The reason why one process is refused: another one with the same key is linked, and answers."""

InstanceNumber = Annotated[bytes, Meta(min_length=INSTANCE_BYTES, max_length=INSTANCE_BYTES)]
RoleName = Annotated[str, Meta(pattern="^(peer|client)$")]


class Hello(Wire, frozen=True, tag="link.hello"):
    """The dialer says what it wants."""

    version: Index16
    chain_id: Hash32
    genesis_hash: Hash32
    role: RoleName
    """``peer`` for a node of the chain, ``client`` for one who follows and submits."""
    identity: PublicKey
    instance: InstanceNumber
    """Drawn by the process when it started."""
    nonce: Hash32


class Welcome(Wire, frozen=True, tag="link.welcome"):
    """The listener proves itself."""

    identity: PublicKey
    instance: InstanceNumber
    """Drawn by the process when it started."""
    nonce: Hash32
    signature: SignatureBytes


class Prove(Wire, frozen=True, tag="link.prove"):
    """The dialer proves itself."""

    signature: SignatureBytes


class Accepted(Wire, frozen=True, tag="link.accepted"):
    """The link is up."""

    twin: Text
    """To a client: where another process with its key is linked from; empty if there is none."""


class Refused(Wire, frozen=True, tag="link.refused"):
    """The last frame of a link that one end does not want."""

    reason: ShortText
    detail: Text


class Ping(Wire, frozen=True, tag="link.ping"):
    """Asks for a sign of life, and for the time."""

    number: UInt63
    """Grows with each ping of one end of a link."""


class Pong(Wire, frozen=True, tag="link.pong"):
    """Answers a `Ping`, at once."""

    number: UInt63
    """Of the ping."""
    time_ms: Millis
    """Network time of the one who answers. Shown to operators, never used for consensus."""


Control = Hello | Welcome | Prove | Accepted | Refused | Ping | Pong


class LinkClaim(Wire, frozen=True):
    """What both ends sign, each for its own side."""

    side: ShortText
    """``listener``, or the dialer's role."""
    genesis_hash: Hash32
    dialer: PublicKey
    listener: PublicKey
    dialer_nonce: Hash32
    listener_nonce: Hash32
    certificate_hash: Hash32


class LinkRefused(RemoteFault):
    """The other end refused, or what it said is not acceptable."""


@dataclass(frozen=True, slots=True)
class LinkIdentity:
    """Who we are on every link of one chain."""

    signer: Signer
    role: str
    chain_id: bytes
    genesis_hash: bytes
    instance: bytes = field(default_factory=lambda: secrets.token_bytes(INSTANCE_BYTES))


def read_control(body: bytes) -> Control:
    """A control message.

    Raises:
        RemoteFault: malformed.
    """
    return decode(body, Control, MAX_CONTROL_BYTES)  # type: ignore[arg-type]  # a union is a type


@dataclass(slots=True)
class Dialer:
    """The dialer's half, without any input or output."""

    own: LinkIdentity
    nonce: bytes
    certificate_der: bytes
    """What the listener's TLS session showed."""
    expected: bytes | None
    """The key that must answer; None if any node of the chain will do."""
    listener: bytes = b""
    """Who answered, once that is proven."""
    instance: bytes = b""
    """Which of its lives."""

    def hello(self) -> bytes:
        """The first frame's body."""
        own = self.own
        hello = Hello(
            version=LINK_VERSION,
            chain_id=own.chain_id,
            genesis_hash=own.genesis_hash,
            role=own.role,
            identity=own.signer.public_key,
            instance=own.instance,
            nonce=self.nonce,
        )
        return encode(hello)

    def prove(self, reply: Control, verifier: Verifier) -> bytes:
        """Check the listener's `Welcome`, and answer it.

        Raises:
            LinkRefused: it refused, or is not who we wanted.
            BadSignature: it does not hold the key that it names.
        """
        if isinstance(reply, Refused):
            raise LinkRefused(reply.reason, reply.detail)
        if not isinstance(reply, Welcome):
            raise LinkRefused("bad-handshake", f"{type(reply).__name__} in place of Welcome")
        if (reply.identity, reply.instance) == (self.own.signer.public_key, self.own.instance):
            raise LinkRefused(OURSELVES, "the address is our own")
        if self.expected is not None and reply.identity != self.expected:
            raise LinkRefused(
                "wrong-identity",
                f"key {reply.identity.hex()} answered, {self.expected.hex()} was expected",
            )
        self.listener, self.instance = reply.identity, reply.instance
        if not _holds(verifier, self._claim(reply, "listener"), self.own, reply.identity, reply):
            raise BadSignature("the listener's handshake")
        claim = self._claim(reply, self.own.role)
        return encode(Prove(signature=self.own.signer.sign(_bytes(self.own, claim))))

    def _claim(self, reply: Welcome, side: str) -> LinkClaim:
        return LinkClaim(
            side=side,
            genesis_hash=self.own.genesis_hash,
            dialer=self.own.signer.public_key,
            listener=reply.identity,
            dialer_nonce=self.nonce,
            listener_nonce=reply.nonce,
            certificate_hash=sha256(self.certificate_der),
        )


@dataclass(slots=True)
class Listener:
    """The listener's half, without any input or output."""

    own: LinkIdentity
    nonce: bytes
    certificate_der: bytes
    """Our own, as this session showed it."""
    hello: Hello | None = None

    def welcome(self, first: Control) -> bytes:
        """Check a `Hello`, and answer it.

        Raises:
            LinkRefused: another version, chain or genesis.
        """
        if not isinstance(first, Hello):
            raise LinkRefused("bad-handshake", f"{type(first).__name__} in place of Hello")
        own = self.own
        if first.version != LINK_VERSION:
            raise LinkRefused("wrong-version", f"{first.version}, this node has {LINK_VERSION}")
        if first.chain_id != own.chain_id:
            raise LinkRefused(
                "wrong-chain", f"this node serves {own.chain_id.hex()}, not {first.chain_id.hex()}"
            )
        if first.genesis_hash != own.genesis_hash:
            raise LinkRefused(
                "wrong-genesis",
                f"genesis here is {own.genesis_hash.hex()}, not {first.genesis_hash.hex()}",
            )
        self.hello = first
        signature = own.signer.sign(_bytes(own, self._claim("listener")))
        welcome = Welcome(
            identity=own.signer.public_key,
            instance=own.instance,
            nonce=self.nonce,
            signature=signature,
        )
        return encode(welcome)

    def accept(self, proof: Control, verifier: Verifier) -> Hello:
        """Check the dialer's `Prove`.

        Raises:
            LinkRefused: something else came.
            BadSignature: the dialer does not hold the key that it names.
        """
        assert self.hello is not None, "welcome() comes first"
        if not isinstance(proof, Prove):
            raise LinkRefused("bad-handshake", f"{type(proof).__name__} in place of Prove")
        if not _holds(verifier, self._claim(self.hello.role), self.own, self.hello.identity, proof):
            raise BadSignature("the dialer's handshake")
        return self.hello

    def _claim(self, side: str) -> LinkClaim:
        assert self.hello is not None, "welcome() comes first"
        return LinkClaim(
            side=side,
            genesis_hash=self.own.genesis_hash,
            dialer=self.hello.identity,
            listener=self.own.signer.public_key,
            dialer_nonce=self.hello.nonce,
            listener_nonce=self.nonce,
            certificate_hash=sha256(self.certificate_der),
        )


def _bytes(own: LinkIdentity, claim: LinkClaim) -> bytes:
    return signed_bytes(Domain.HANDSHAKE, own.chain_id, encode(claim))


def _holds(
    verifier: Verifier, claim: LinkClaim, own: LinkIdentity, key: bytes, reply: Welcome | Prove
) -> bool:
    return verifier.verify(key, _bytes(own, claim), reply.signature)
