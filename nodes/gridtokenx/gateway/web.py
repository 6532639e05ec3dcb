"""HTTP for people and programs: JSON in and out, and a reason in every refusal.

Law of the file: **bad input is answered with 400, 404, 405 or 413 and
``{"error": {"code", "message"}}``**, costs a bounded amount, and never reaches a node. 503 with a
reason means that nothing verified can be shown now; 500 is a bug of ours.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from gridtokenx.core.addresses import parse_address
from gridtokenx.core.errors import RemoteFault
from gridtokenx.gateway.facts import NetworkFacts, market_name
from gridtokenx.gateway.ports import Unavailable
from gridtokenx.host.chains import CHAINS
from gridtokenx.host.logs import Logger
from gridtokenx.host.metrics import Metrics
from gridtokenx.ledger.transactions import MAX_TRANSACTION_BYTES

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 500
MAX_BODY_BYTES: Final = 2 * MAX_TRANSACTION_BYTES + 1_024
"""A transaction in hexadecimal, and the JSON around it."""
BODY_TIMEOUT_S: Final = 10.0
MAX_READING: Final = 64
"""Bodies that are being read at once; the one that began first makes way for a further one."""
MAX_REQUESTS: Final = 128
"""Requests in progress at once, their bodies read; what comes beyond is told to come back."""
OPERATORS: Final = frozenset({"/health", "/ready", "/metrics"})
"""Always answered, however much else is asked."""
MAX_QUERY_CHARACTERS: Final = 2_048

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """The request can not be answered; nothing is wrong with us."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def bad(code: str, message: str) -> Refusal:
    """A 400."""
    return Refusal(400, code, message)


def missing(code: str, message: str) -> Refusal:
    """A 404."""
    return Refusal(404, code, message)


def reply(value: object, status: int = 200) -> web.Response:
    """A JSON answer; never cached, since the next block may change it."""
    return web.Response(
        body=msgspec.json.encode(value),
        status=status,
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )


def error(status: int, code: str, message: str) -> web.Response:
    """A JSON refusal."""
    return reply({"error": {"code": code, "message": message}}, status)


# -- reading requests ------------------------------------------------------------------------------


def check_query(request: web.Request, *known: str) -> None:
    """Refuse parameters that would be ignored, and any that is given twice."""
    if len(request.query_string) > MAX_QUERY_CHARACTERS:
        raise bad("query-too-long", f"at most {MAX_QUERY_CHARACTERS} characters")
    for name in request.query:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise bad("unknown-parameter", f"{name[:64]!r} is not allowed here: {allowed}")
        if len(request.query.getall(name)) > 1:
            raise bad("repeated-parameter", f"{name!r} is given more than once")


def read_limit(request: web.Request) -> int:
    """How many entries to answer with; more than `MAX_LIMIT` is `MAX_LIMIT`."""
    return min(read_number(request, "limit", DEFAULT_LIMIT, least=1), MAX_LIMIT)


def read_number(request: web.Request, name: str, default: int, *, least: int = 0) -> int:
    """A whole number from the query."""
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 18) or int(text) < least:
        raise bad(f"bad-{name}", f"{name} is {text[:32]!r}: a whole number of at least {least}")
    return int(text)


def read_flag(request: web.Request, name: str) -> bool:
    """A switch from the query."""
    text = request.query.get(name, "false").lower()
    if text not in {"true", "false", "1", "0", ""}:
        raise bad(f"bad-{name}", f"{name} is {text[:32]!r}: true or false")
    return text in {"true", "1", ""}


def read_choice(request: web.Request, name: str, choices: tuple[str, ...]) -> str | None:
    """One of several words from the query, or None."""
    text = request.query.get(name)
    if text is not None and text not in choices:
        raise bad(f"bad-{name}", f"{name} is {text[:32]!r}: one of {', '.join(choices)}")
    return text


def read_account(text: str) -> bytes:
    """The key behind an address."""
    try:
        return parse_address(text)
    except RemoteFault as fault:
        raise bad(fault.reason, fault.detail) from None


def read_zone(text: str, network: NetworkFacts) -> int:
    """The zone of a market's name."""
    for zone in network.zones:
        if text == market_name(zone):
            return zone
    raise missing("unknown-market", f"there is no market {text[:32]!r}; see /api/v1/markets")


def read_chain(text: str) -> str:
    """A chain's name."""
    if text not in CHAINS:
        raise missing("unknown-chain", f"there is no chain {text[:32]!r}: {', '.join(CHAINS)}")
    return text


def read_hash(text: str, what: str) -> bytes:
    """32 bytes in hexadecimal."""
    raw = _unhex(text)
    if raw is None or len(raw) != 32:
        raise bad(f"bad-{what}", f"{text[:80]!r} is not 64 hexadecimal digits")
    return raw


def _unhex(text: str) -> bytes | None:
    """Strict: `bytes.fromhex` alone would pass over blanks."""
    if not text.isascii() or not text.isalnum():
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


class TransactionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a submission."""

    transaction: str
    """The canonical bytes of a signed transaction, in hexadecimal."""


async def read_transaction_bytes(request: web.Request) -> bytes:
    """The signed bytes in a submission's body."""
    body = await request.read()  # `Guard` has read it
    try:
        text = msgspec.json.decode(body, type=TransactionBody).transaction
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as fault:
        raise bad(
            "bad-body", f'the body is not {{"transaction": "<hexadecimal>"}}: {str(fault)[:200]}'
        ) from None
    raw = _unhex(text)
    if raw is None:
        raise bad("bad-hex", "transaction is not hexadecimal")
    if len(raw) > MAX_TRANSACTION_BYTES:
        raise bad("too-large", f"{len(raw)} bytes; at most {MAX_TRANSACTION_BYTES} are allowed")
    return raw


# -- around every handler --------------------------------------------------------------------------


class Guard:
    """The one place where requests are bounded and refusals become answers.

    Args:
        metrics: counts answers by status and refusals by code.
        logger: hears of bugs.
    """

    def __init__(self, metrics: Metrics, logger: Logger) -> None:
        self._metrics: Final = metrics
        self._logger: Final = logger
        self._running = 0
        self._reading: dict[asyncio.Timeout, None] = {}

    def middleware(self) -> Middleware:
        """For `web.Application`."""

        @web.middleware
        async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
            async def bounded(request: web.Request) -> web.StreamResponse:
                await self._read_body(request)
                if self._running >= MAX_REQUESTS:
                    raise Refusal(503, "busy", "too many requests at once; try again")
                self._running += 1
                try:
                    return await handler(request)
                finally:
                    self._running -= 1

            work = handler if request.path in OPERATORS else bounded
            return self._count(await self._answer(request, work))

        return around

    async def _read_body(self, request: web.Request) -> None:
        """Have all of a body before anything else is spent on its request.

        Raises:
            Refusal: it comes too slowly.
        """
        if request.method != "POST":
            return
        if len(self._reading) >= MAX_READING:
            oldest = next(iter(self._reading))
            self._reading.pop(oldest)
            oldest.reschedule(asyncio.get_running_loop().time())
        limit = asyncio.timeout(BODY_TIMEOUT_S)
        try:
            async with limit:
                self._reading[limit] = None
                await request.read()
        except TimeoutError:
            raise bad(
                "slow-body", f"the body took {BODY_TIMEOUT_S:.0f} s, or others waited for its place"
            ) from None
        finally:
            self._reading.pop(limit, None)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refusal as refusal:
            self._metrics.count("gateway_refused", reason=refusal.code)
            return error(refusal.status, refusal.code, refusal.message)
        except Unavailable as fault:
            self._metrics.count("gateway_unavailable", reason=fault.reason)
            return error(503, fault.reason, fault.detail)
        except RemoteFault as fault:
            self._metrics.count("gateway_refused", reason=fault.reason)
            return error(400, fault.reason, fault.detail)
        except web.HTTPException as answer:
            return self._translate(request, answer)
        except Exception as bug:  # noqa: BLE001 - the outermost place of a request
            self._logger.error("request failed", path=request.path, error=repr(bug))
            return error(500, "internal", "a bug of the gateway; its log says more")

    def _translate(self, request: web.Request, answer: web.HTTPException) -> web.StreamResponse:
        """The framework's own refusals, in our form."""
        path = request.path[:64]
        match answer.status:
            case 404:
                made = error(404, "not-found", f"there is nothing at {path!r}")
            case 405:
                allowed = answer.headers.get("Allow", "")
                made = error(405, "method-not-allowed", f"{path!r} allows {allowed}")
                made.headers["Allow"] = allowed
            case 413:
                made = error(413, "body-too-large", f"at most {MAX_BODY_BYTES} bytes")
            case status if status < 400:
                raise answer
            case status:
                made = error(status, "bad-request", answer.reason)
        code = f"http-{answer.status}"
        self._metrics.count("gateway_refused", reason=code)
        return made

    def _count(self, answer: web.StreamResponse) -> web.StreamResponse:
        self._metrics.count("gateway_answers", status=str(answer.status))
        return answer
