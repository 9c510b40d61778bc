"""The audit log: whether it is sound, and its newest entries, which hold no words."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aegis.audit import AuditKeys
from aegis.audit.reader import records
from aegis.audit.verify import verify
from aegis.errors import AegisError
from aegis.web.forms import with_form
from aegis.web.pages import page

_NEWEST = 50


@dataclass(frozen=True)
class AuditPages:
    """The page of a log; `folder` is None where there is none.

    Args:
        keys: the owner's; without them the log's own word is taken.
    """

    folder: Path | None = None
    keys: AuditKeys | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/audit", self.show),
            Route("/audit", with_form(self.verify), methods=["POST"]),
        ]

    def show(self, request: Request) -> Response:
        """Show the newest entries, not verified."""
        entries = deque((line for line, _ in records(self.folder)), _NEWEST) if self.folder else ()
        return page(
            *(request, "audit.html.j2"),
            folder=self.folder and str(self.folder),
            entries=list(reversed(entries)),
            report=None,
            problem="",
        )

    def verify(self, request: Request, _: dict[str, str]) -> Response:
        """Follow the whole log and say whether it is sound."""
        report, problem = None, ""
        try:
            report = verify(self.folder, keys=self.keys) if self.folder else None
        except AegisError as error:
            problem = str(error)
        return page(
            *(request, "audit.html.j2"),
            folder=self.folder and str(self.folder),
            entries=[],
            report=report,
            problem=problem or (report.problem if report else ""),
        )
