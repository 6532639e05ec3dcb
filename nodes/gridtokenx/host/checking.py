"""Signature checks: batched, cached, and if wished on threads.

A check costs about 100 us, a look into the cache about 1. What was checked once (a transaction from the
pool that comes again inside a block, votes inside a certificate) is not checked again. The cache holds
digests of whole checks, valid ones only, so nothing that was not verified is ever taken for verified.
"""

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from gridtokenx.core.keys import Verifier, sha256
from gridtokenx.core.machine import SignatureCheck

JOB_CHECKS: Final = 64
"""Checks in one job for a thread; a job of one costs more than its check."""


class CachingVerifier:
    """A `Verifier` that remembers the last valid signatures, in two generations.

    Args:
        inner: does the checking.
        size: how many signatures one generation remembers (about 100 bytes each).
    """

    def __init__(self, inner: Verifier, size: int = 8192) -> None:
        self._inner = inner
        self._size = size
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is valid; never raises on bad input."""
        digest = _digest(public_key, message, signature)
        if self._knows(digest):
            return True
        valid = self._inner.verify(public_key, message, signature)
        if valid:
            self._remember(digest)
        return valid

    def knows(self, check: SignatureCheck) -> bool:
        """Whether a check was made lately, and held."""
        return self._knows(_digest(check.public_key, check.message, check.signature))

    def unknown(self, checks: Sequence[SignatureCheck]) -> list[SignatureCheck]:
        """Those checks that still have to be made."""
        return [check for check in checks if not self.knows(check)]

    def check_uncached(self, checks: Sequence[SignatureCheck]) -> list[bool]:
        """Check without touching the cache: safe on any thread."""
        verify = self._inner.verify
        return [verify(check.public_key, check.message, check.signature) for check in checks]

    def remember(self, check: SignatureCheck) -> None:
        """Note that a check was made and held."""
        self._remember(_digest(check.public_key, check.message, check.signature))

    def _knows(self, digest: bytes) -> bool:
        return digest in self._young or digest in self._old

    def _remember(self, digest: bytes) -> None:
        self._young.add(digest)
        if len(self._young) >= self._size:
            self._old, self._young = self._young, set()


class SignatureChecker:
    """Checks lists of signatures, here or on a pool of threads (libsodium releases the GIL).

    Args:
        verifier: shared with whatever else checks signatures in this process.
        threads: 0 checks on the loop's own thread, which is best where many nodes share a machine.
    """

    def __init__(self, verifier: CachingVerifier, threads: int = 0) -> None:
        self.verifier = verifier
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads, "verify") if threads else None

    async def all_valid(self, groups: Sequence[Sequence[SignatureCheck]]) -> list[bool]:
        """For each group, whether all its signatures are valid."""
        if self._pool is not None:
            await self._check_on_threads([check for group in groups for check in group])
        return [self.holds(group) for group in groups]

    @property
    def threaded(self) -> bool:
        """Whether several are checked at once: then it is better to ask for many together."""
        return self._pool is not None

    def holds(self, group: Iterable[SignatureCheck]) -> bool:
        """Whether all these signatures are valid; checks on the caller's own thread."""
        verify = self.verifier.verify
        return all(verify(check.public_key, check.message, check.signature) for check in group)

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    async def _check_on_threads(self, checks: Sequence[SignatureCheck]) -> None:
        """Fill the cache; what is invalid is found again, and refused, by the caller."""
        missing = self.verifier.unknown(checks)
        loop = asyncio.get_running_loop()
        jobs = [missing[at : at + JOB_CHECKS] for at in range(0, len(missing), JOB_CHECKS)]
        results = await asyncio.gather(
            *(loop.run_in_executor(self._pool, self.verifier.check_uncached, job) for job in jobs)
        )
        for job, valid in zip(jobs, results, strict=True):
            for check, holds in zip(job, valid, strict=True):
                if holds:
                    self.verifier.remember(check)


def _digest(public_key: bytes, message: bytes, signature: bytes) -> bytes:
    """Key and signature have fixed lengths, so the concatenation has one reading."""
    return sha256(public_key, signature, message)
