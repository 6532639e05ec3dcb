"""What accounts may ask of staking, and what staking tells: calls, events, and the key's proof."""

from typing import Annotated, Final

from msgspec import Meta

from gridtokenx.core.codec import Wire, encode
from gridtokenx.core.keys import Domain, Signer, Verifier, signed_bytes
from gridtokenx.core.types import UINT63_MAX, Index16, PublicKey, SignatureBytes, UInt63

MAX_TARGETS: Final = 16

Amount = Annotated[int, Meta(ge=1, le=UINT63_MAX)]
Targets = Annotated[tuple[PublicKey, ...], Meta(min_length=1, max_length=MAX_TARGETS)]


# -- calls -----------------------------------------------------------------------------------------


class Bond(Wire, frozen=True, tag="staking.bond"):
    """Lock GRID of one's own as stake, or more of it."""

    amount_ngrid: Amount


class Unbond(Wire, frozen=True, tag="staking.unbond"):
    """Take stake out of play; it stays locked for the unbonding period."""

    amount_ngrid: Amount


class Withdraw(Wire, frozen=True, tag="staking.withdraw"):
    """Get back what was unbonded and whose period is over."""


class Nominate(Wire, frozen=True, tag="staking.nominate"):
    """Put all of one's stake behind these candidates, instead of those named before."""

    targets: Targets
    """Accounts that stand for election, each once."""


class Stand(Wire, frozen=True, tag="staking.stand"):
    """Stand for election, from the next one on; the account's stake backs itself."""

    session_key: PublicKey
    """Signs blocks, slot draws and votes; lives on the validator's machine."""
    proof: SignatureBytes
    """Of possession: by the session key over `SessionKeyProof`."""


class SetSessionKey(Wire, frozen=True, tag="staking.set_session_key"):
    """Use another session key from the next era on; the old one works until then."""

    session_key: PublicKey
    proof: SignatureBytes
    """See `Stand`."""


class Chill(Wire, frozen=True, tag="staking.chill"):
    """Stand down and nominate nobody; a seat is kept until the next election."""


# -- proof of possession ---------------------------------------------------------------------------


class SessionKeyProof(Wire, frozen=True):
    """What a session key signs to be used by an account, so that nobody can claim another's key."""

    account: PublicKey
    session_key: PublicKey

    def signed_bytes(self, chain_id: bytes) -> bytes:
        """The exact bytes under the signature."""
        return signed_bytes(Domain.SESSION_KEY, chain_id, encode(self))


def prove_session_key(signer: Signer, chain_id: bytes, account: bytes) -> bytes:
    """The proof that the holder of a session key lets an account validate with it."""
    proof = SessionKeyProof(account=account, session_key=signer.public_key)
    return signer.sign(proof.signed_bytes(chain_id))


def holds_session_key(
    verifier: Verifier, chain_id: bytes, account: bytes, session_key: bytes, proof: bytes
) -> bool:
    """Whether a proof of possession is valid."""
    message = SessionKeyProof(account=account, session_key=session_key).signed_bytes(chain_id)
    return verifier.verify(session_key, message, proof)


# -- events ----------------------------------------------------------------------------------------


class Bonded(Wire, frozen=True, tag="staking.bonded"):
    """An account locked stake."""

    account: PublicKey
    amount_ngrid: UInt63
    bonded_ngrid: UInt63
    """All that is in play now."""


class Unbonded(Wire, frozen=True, tag="staking.unbonded"):
    """An account took stake out of play."""

    account: PublicKey
    amount_ngrid: UInt63
    ready_era: UInt63
    """From this era on it can be withdrawn."""


class Withdrawn(Wire, frozen=True, tag="staking.withdrawn"):
    """An account's stake is free again."""

    account: PublicKey
    amount_ngrid: UInt63


class Nominated(Wire, frozen=True, tag="staking.nominated"):
    """An account backs these candidates from the next election on."""

    account: PublicKey
    targets: Targets


class Stood(Wire, frozen=True, tag="staking.stood"):
    """An account stands for election."""

    account: PublicKey
    session_key: PublicKey


class SessionKeySet(Wire, frozen=True, tag="staking.session_key_set"):
    """A candidate's next session key."""

    account: PublicKey
    session_key: PublicKey


class Chilled(Wire, frozen=True, tag="staking.chilled"):
    """An account stands and nominates no more."""

    account: PublicKey


class Displaced(Wire, frozen=True, tag="staking.displaced"):
    """A full list made room for a greater stake: the account's candidacy or nomination ended."""

    account: PublicKey
    by: PublicKey


class ValidatorElected(Wire, frozen=True, tag="staking.elected"):
    """An account won a seat that it did not have."""

    account: PublicKey
    session_key: PublicKey
    support_ngrid: UInt63


class ValidatorLeft(Wire, frozen=True, tag="staking.left"):
    """An account lost its seat."""

    account: PublicKey


class EraBegan(Wire, frozen=True, tag="staking.era"):
    """An election was held: this block is the first of an era."""

    era: UInt63
    set_id: UInt63
    """The set of this block's children; as before if its members are."""
    support_ngrid: UInt63
    """All stake behind all seats."""
    least_support_ngrid: UInt63
    """What the seat with the least has."""


class ElectionFailed(Wire, frozen=True, tag="staking.election_failed"):
    """Too few candidates have any support: the seats stay as they are."""

    era: UInt63
    backed: Index16
    seats: Index16


EVENTS: Final = (
    Bonded,
    Unbonded,
    Withdrawn,
    Nominated,
    Stood,
    SessionKeySet,
    Chilled,
    Displaced,
    ValidatorElected,
    ValidatorLeft,
    EraBegan,
    ElectionFailed,
)
