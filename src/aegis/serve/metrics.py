"""What /metrics tells: counts and times by fixed words, never by anything that somebody wrote."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from aegis.protocol.decisions import Decision

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "aegis_requests", "Requests", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "aegis_request_seconds",
            "Time a request",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._decisions = Counter(
            "aegis_decisions", "Answers by decision", ["decision"], registry=self.registry
        )
        self._withheld = Counter(
            "aegis_withheld",
            "Answers replaced by the fixed refusal",
            ["reason"],
            registry=self.registry,
        )
        self.working = Gauge(
            "aegis_working", "Questions being answered or waiting", registry=self.registry
        )
        self.waiting_cases = Gauge(
            "aegis_escalations_open", "Cases that wait for a person", registry=self.registry
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def decided(self, decision: Decision) -> None:
        self._decisions.labels(decision.name).inc()

    def withheld(self, reason: str) -> None:
        self._withheld.labels(reason).inc()

    def text(self) -> bytes:
        return generate_latest(self.registry)
