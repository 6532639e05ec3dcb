"""Counters of processes that come and go: read from `/metrics`, summed over lives.

A restarted process counts from zero again; what its earlier lives had counted (as last seen) is
kept. What a killed process counted after the last look is lost, so totals are lower bounds.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from gridtokenx.lab.ports import LOOPBACK

TIMEOUT_S = 2.0


class Counters:
    """Counters of several processes.

    Args:
        ports: HTTP port by process name.
    """

    def __init__(self, ports: Mapping[str, int]) -> None:
        self._ports = dict(ports)
        self._current: dict[tuple[str, str], float] = {}
        self._past: Counter[str] = Counter()

    def total(self, name: str) -> int:
        """A counter summed over all processes, labels and lives."""
        now = sum(value for (_, sample), value in self._current.items() if sample == name)
        return int(now) + self._past[name]

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Read every process that answers."""
        await asyncio.gather(*(self._read(session, name) for name in self._ports))

    async def _read(self, session: aiohttp.ClientSession, process: str) -> None:
        url = f"http://{LOOPBACK}:{self._ports[process]}/metrics"
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with session.get(url, timeout=timeout) as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError):
            return
        self._take(process, text)

    def _take(self, process: str, text: str) -> None:
        sums: Counter[str] = Counter()
        for family in text_string_to_metric_families(text):
            if family.type == "counter":
                for sample in family.samples:
                    if sample.name.endswith("_total"):
                        sums[sample.name] += int(sample.value)
        for name, value in sums.items():
            before = self._current.get((process, name), 0)
            if value < before:
                self._past[name] += int(before)
            self._current[(process, name)] = value
