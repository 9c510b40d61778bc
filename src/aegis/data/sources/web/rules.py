"""What a host says about all of its pages, asked for once a day."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from aegis.data.sources.web.fetch import Fetcher, RefusedError
from aegis.data.sources.web.reservations import TdmFile
from aegis.data.sources.web.robots import MOST_BYTES, Robots
from aegis.storage.files import fingerprint, make_folder, write_json

DAY_S = 86_400.0


@dataclass(frozen=True)
class HostRules:
    """robots.txt and the reservations of one scheme, host and port."""

    origin: str
    status: int
    time_s: float
    robots: Robots
    reservations: TdmFile

    def require_permitted(self, url: str) -> str:
        """Return the words of the permission.

        Raises:
            RefusedError: if robots.txt or a reservation is against the page.
        """
        when = utc(self.time_s)
        if not self.robots.allows(url):
            raise RefusedError(f"robots.txt: disallowed on {when}")
        if self.robots.reservation:
            raise RefusedError(f"reserved: {self.robots.reservation[:80]} in robots.txt")
        self.reservations.require_unreserved(url)
        answer = f"{self.origin}/robots.txt answered {self.status} on {when}"
        return f"allowed: {answer}"


class RulesCache:
    """Fetches the rules of a host and keeps them for a day, on the disk.

    No answer, 5xx, 429 and more than five redirects mean "do not fetch", which is kept for this
    run only; any other 4xx means that there are no rules.
    """

    def __init__(
        self, folder: Path, fetcher: Fetcher, *, now: Callable[[], float] = time.time
    ) -> None:
        self.folder, self.fetcher, self.now = folder, fetcher, now
        self._rules: dict[str, HostRules] = {}
        self._refused: dict[str, str] = {}

    def of(self, url: httpx.URL) -> HostRules:
        """Return the rules of the URL's host.

        Raises:
            RefusedError: if the host does not tell them.
        """
        origin = f"{url.scheme}://{url.netloc.decode()}"
        if origin in self._refused:
            raise RefusedError(self._refused[origin])
        rules = self._rules.get(origin)
        if rules is None or not self._is_fresh(rules.time_s):
            try:
                rules = self._rules[origin] = self._load(origin)
            except RefusedError as error:
                self._refused[origin] = error.reason
                raise
        return rules

    def _load(self, origin: str) -> HostRules:
        path = self.folder / f"{fingerprint(origin)[:32]}.json"
        if not (rules := self._read(path, origin)):
            row = self._ask(origin)
            make_folder(self.folder)
            write_json(path, row)
            rules = _rules(origin, row)
        self._keep_pace(origin, rules.robots)
        return rules

    def _read(self, path: Path, origin: str) -> HostRules | None:
        """Return the rules on the disk, if they are of the last day and whole."""
        try:
            rules = _rules(origin, json.loads(path.read_text(encoding="utf-8")))
            return rules if self._is_fresh(rules.time_s) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _ask(self, origin: str) -> dict[str, Any]:
        try:
            answer = self.fetcher.get(f"{origin}/robots.txt", cut_at=MOST_BYTES)
        except RefusedError as error:
            raise RefusedError(f"robots.txt: unreachable ({error.reason})") from error
        if answer.status // 100 not in (2, 4) or answer.status == 429:
            raise RefusedError(f"robots.txt: unreachable (status {answer.status})")
        row = {"status": answer.status, "robots": answer.body.hex(), "time_s": self.now()}
        place = f"{origin}/.well-known/tdmrep.json"
        robots = Robots(answer.body)
        self._keep_pace(origin, robots)
        return {**row, "tdmrep": self._tdmrep(place) if robots.allows(place) else ""}

    def _keep_pace(self, origin: str, robots: Robots) -> None:
        host, delays = httpx.URL(origin).host, self.fetcher.delays
        if robots.delay_s > self.fetcher.longest_delay_s:
            raise RefusedError(f"robots.txt: asks for {robots.delay_s:g} s between pages")
        delays[host] = max(delays.get(host, 1.0), robots.delay_s)

    def _tdmrep(self, place: str) -> str:
        try:
            answer = self.fetcher.get(place, cut_at=MOST_BYTES)
        except RefusedError as error:
            raise RefusedError(f"reserved: tdmrep.json is unreachable ({error.reason})") from error
        if answer.status >= 500 or answer.status == 429:
            raise RefusedError(f"reserved: tdmrep.json is unreachable (status {answer.status})")
        is_page = "html" in answer.headers.get("content-type", "")  # "not found" with status 200
        return "" if is_page else answer.body.decode("utf-8-sig", "replace")

    def _is_fresh(self, time_s: float) -> bool:
        return 0 <= self.now() - time_s < DAY_S


def _rules(origin: str, row: dict[str, Any]) -> HostRules:
    robots, reservations = Robots(bytes.fromhex(row["robots"])), TdmFile(row["tdmrep"])
    return HostRules(origin, row["status"], row["time_s"], robots, reservations)


def utc(time_s: float) -> str:
    """Return the time as 2026-11-30T12:00:00Z."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
