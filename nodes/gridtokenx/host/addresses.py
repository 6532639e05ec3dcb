"""Network addresses as people write them: ``host:port``, or ``<identity key>@host:port``."""

from dataclasses import dataclass

from gridtokenx.core.errors import LocalFault


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen or dial. Port 0 lets the system choose when listening."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "HostPort":
        """Read ``host:port`` or ``[v6]:port``.

        Raises:
            LocalFault: it is neither.
        """
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isdecimal() and int(port) < 65_536):
            raise LocalFault(f"address {text!r} is not allowed: host:port, port 0 to 65535")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """A node that we dial, and the key that must answer there (None: any node of the chain)."""

    where: HostPort
    identity: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> "NodeAddress":
        """Read ``host:port`` or ``<64 hexadecimal digits>@host:port``.

        Raises:
            LocalFault: it is neither.
        """
        key, at, where = text.strip().rpartition("@")
        if not at:
            return cls(HostPort.parse(where))
        try:
            identity = bytes.fromhex(key)
        except ValueError:
            identity = b""
        if len(identity) != 32:
            raise LocalFault(
                f"address {text!r} is not allowed: before the @ comes a key of 64 hexadecimal digits"
            )
        return cls(HostPort.parse(where), identity)

    def __str__(self) -> str:
        return f"{self.identity.hex()}@{self.where}" if self.identity else str(self.where)
