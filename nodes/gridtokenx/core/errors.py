"""Every expected error of GridTokenX: the type says whose fault it is.

::

    GridTokenXError
    ├── LocalFault          this process, its files or its operator: exit code 2, one line
    └── RemoteFault         a peer, client or device: counted by `reason`, never fatal
        ├── Malformed       bytes that are no message of ours
        └── BadSignature    a signature that does not verify

A message says what was wrong, where, and what to do. `RemoteFault.reason` is a short fixed word
(it becomes a metric label); `detail` is free text.
"""


class GridTokenXError(Exception):
    """Base of all expected errors."""


class LocalFault(GridTokenXError):
    """Something on our side: configuration, keys, files, a manifest. Ends the process with code 2."""


class RemoteFault(GridTokenXError):
    """Bad input from outside.

    Args:
        reason: a fixed, low-cardinality word such as ``"unknown-sender"``; used as a metric label.
        detail: what exactly was wrong, for the log.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class Malformed(RemoteFault):
    """Bytes that do not decode to the expected message, or not canonically."""

    def __init__(self, detail: str) -> None:
        super().__init__("malformed", detail)


class BadSignature(RemoteFault):
    """A signature that does not verify under the key it names."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad-signature", detail)
