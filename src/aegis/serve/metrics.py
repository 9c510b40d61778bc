"""What `/metrics` counts, by fixed words, never by anything that somebody wrote."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aegis.protocol.decisions import Decision

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class ServerMetrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        known: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("aegis_requests", "Requests", ["route", "status"], **known)
        self._seconds = Histogram(
            "aegis_request_seconds", "Time a request", ["route"], buckets=_SECONDS, **known
        )
        self._decisions = Counter("aegis_decisions", "Questions by decision", ["decision"], **known)
        self._outcomes = Counter("aegis_outcomes", "Questions by outcome", ["outcome"], **known)
        self._withheld = Counter("aegis_withheld", "Answers kept back", ["check"], **known)
        self.retries = Counter("aegis_retries", "Answers drawn once more", **known)
        self.working = Gauge("aegis_working", "Questions being answered or waiting", **known)
        self.waiting_cases = Gauge(
            "aegis_escalations_open", "Cases that wait for a person", **known
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def ended(self, decision: Decision | None, outcome: str, check: str | None = None) -> None:
        """Count how a question ended, and the check that kept its answer back, if one did."""
        if decision is not None:
            self._decisions.labels(decision.name).inc()
        self._outcomes.labels(outcome).inc()
        if check:
            self._withheld.labels(check).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
