"""What was read of pages, kept on the disk: masked texts and refusals, never the pages."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from aegis.storage.files import fingerprint, make_folder, write_json

_VERSION = 1  # of how a page becomes a text


@dataclass(frozen=True)
class Visit:
    """One page as it was read: a text with personal data masked, or the reason against it.

    Args:
        url: what was asked for.
        place: where it led; with a reason, a place that must not be asked for.
        time_s: when it was read or found unchanged, in seconds since 1970.
        reason: why it is not collected, empty if it is.
        limits: under which it is not.
        links: where it leads on the same host.
        masked: pieces of personal data.
        etag, modified: what a conditional request sends back.
    """

    url: str
    place: str
    time_s: float
    reason: str = ""
    limits: str = ""
    text: str = ""
    title: str = ""
    links: tuple[str, ...] = ()
    masked: int = 0
    etag: str = ""
    modified: str = ""


class VisitStore:
    """One small file a page, written whole or not at all: what was read is not asked for again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, url: str) -> Visit | None:
        """Return what was read there last; None too for a file that is damaged."""
        try:
            row = json.loads(self._path(url).read_text(encoding="utf-8"))
            return Visit(**{**row, "links": tuple(row["links"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, visit: Visit) -> None:
        path = self._path(visit.url)
        make_folder(path.parent)
        write_json(path, asdict(visit))

    def _path(self, url: str) -> Path:
        name = fingerprint(_VERSION, url)[:32]
        return self.folder / name[:2] / f"{name}.json"
