"""The signer's high-water marks: the last line against voting twice.

Law of the file: **for one (set, height, view, kind) at most one statement is ever signed**, whatever
the machine asks, whatever it has forgotten. Per kind of vote the mark is the greatest (set, view,
height) signed so far and a hash of what was signed. What lies below the mark is refused; at the mark
only the same statement is signed again; what lies above moves the mark.

A correct replica votes in exactly this order: views only grow, and inside a view its votes of one
kind go up in height because prepares are chained. So the mark costs it nothing, and one record per
kind is enough for ever.

The mark enters the batch of the step that asked for the signature, so it is durable before the vote
can leave (`turn.py`).
"""

from typing import Final

from gridtokenx.core.codec import Wire, decode_own, encode
from gridtokenx.core.errors import LocalFault
from gridtokenx.core.keys import Domain, Signer, sha256
from gridtokenx.core.machine import Reader, Write
from gridtokenx.core.types import Hash32, Height, UInt63
from gridtokenx.ledger.records import META
from gridtokenx.pbft.turn import Turn

_PREFIX: Final = b"mark/"


class SigningRefused(LocalFault):
    """The machine asked for a signature that could contradict an earlier one."""


class Mark(Wire, frozen=True):
    """The furthest vote of one kind."""

    set_id: UInt63
    """The validator set of that vote."""
    view: UInt63
    """Its view."""
    height: Height
    """Its height; 0 for votes about a view."""
    statement: Hash32
    """Hash of the exact signed bytes."""

    @property
    def position(self) -> tuple[int, int, int]:
        """What must not go back."""
        return self.set_id, self.view, self.height


class MarkedSigner:
    """The only holder of the replica's signer.

    Args:
        signer: the replica's key.
        reader: where earlier marks are.
    """

    def __init__(self, signer: Signer, reader: Reader) -> None:
        self._signer: Final = signer
        self._marks: Final = {
            key[len(_PREFIX) :]: decode_own(value, Mark)
            for key, value in reader.scan(META, _PREFIX)
        }

    def furthest(self, domain: Domain) -> tuple[int, int, int] | None:
        """(set, view, height) of the furthest vote of a kind; None if there was none."""
        known = self._marks.get(domain.value)
        return None if known is None else known.position

    def sign(
        self, turn: Turn, domain: Domain, position: tuple[int, int, int], what: bytes
    ) -> bytes:
        """Sign `what`, and put the mark into the step's batch.

        Args:
            turn: the step that will send the signature.
            domain: the kind of vote.
            position: (set, view, height); height 0 for votes about a view.
            what: the exact bytes to sign.

        Raises:
            SigningRefused: at or below an earlier vote of this kind, and not the same one.
        """
        kind = domain.value
        mark = Mark(*position, statement=sha256(b"mark", what))
        known = self._marks.get(kind)
        if known is not None and known != mark and known.position >= mark.position:
            raise SigningRefused(
                f"{domain.name}: (set, view, height) {mark.position} is not above the last vote's"
                f" {known.position}; refusing what could contradict it"
            )
        self._marks[kind] = mark
        turn.write(Write(META, _PREFIX + kind, encode(mark)))
        return self._signer.sign(what)
