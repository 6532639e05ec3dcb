"""Ask a process on this machine whether it lives: the health check of a container.

Only the standard library, and little of it: an engine runs this every few seconds in every container.
"""

import os
import sys
from http.client import HTTPConnection, HTTPException
from typing import Final

TIMEOUT_S: Final = 8.0
DEFAULT_PORT: Final = 26_601


def ask(host: str, port: int, path: str = "/health") -> str | None:
    """What is wrong with the process that serves HTTP there, or None.

    Args:
        host: where it listens; an address that means "everywhere" is asked on loopback.
        port: of its `/health` and `/ready`.
        path: ``/health`` (does it live) or ``/ready`` (does it do its work).
    """
    connection = HTTPConnection("127.0.0.1" if host in ("", "0.0.0.0") else host, port, TIMEOUT_S)  # noqa: S104
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read(4096).decode(errors="replace")
    except (OSError, HTTPException) as error:
        return f"{host}:{port} does not answer: {error}"
    finally:
        connection.close()
    return None if answer.status == 200 else f"{host}:{port}{path}: {answer.status} {body}"


def main(arguments: list[str]) -> int:
    """Check ``HOST:PORT``, from the argument, from ``GTX_HTTP``, or the port of our containers."""
    where = arguments[0] if arguments else os.environ.get("GTX_HTTP", f"127.0.0.1:{DEFAULT_PORT}")
    host, _, port = where.rpartition(":")
    wrong = ask(host, int(port))
    if wrong is not None:
        sys.stderr.write(f"error: {wrong}\n")
    return 1 if wrong is not None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
