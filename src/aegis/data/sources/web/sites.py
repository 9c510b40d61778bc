"""The file of sites: what may be collected, under which licence, and who answers for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import httpx
from pydantic import Field, ValidationError, field_validator, model_validator

from aegis.config.settings import AtLeastOne, Count, Positive, Settings, Text
from aegis.errors import DataError
from aegis.inputs.strict_yaml import MOST_CHARACTERS, read_yaml
from aegis.inputs.text import read_text

_PORTS = {"http": 80, "https": 443}
_CONTACT = re.compile(
    r"[\w.+-]+@([\w-]+\.)+[a-z]{2,}|https://([\w-]+\.)+[a-z]{2,}(/[\w./~-]*)?", re.I
)
_PLACEHOLDER = re.compile(
    r"[@/.]example\.(com|org|net)\b|\.(example|invalid|test)\b", re.IGNORECASE
)
_NO_LICENCE = {"unknown", "none", "n/a", "tbd", "?", "all rights reserved", "proprietary", "不明"}


class Site(Settings):
    """Pages of one owner under one licence."""

    start: Annotated[list[Text], Field(min_length=1)]
    """Pages to begin with; only their hosts are asked."""
    licence: Text
    """SPDX name or the terms' own words for what allows the use; kept with every page."""
    terms: Text
    """The page on which the owner says so."""
    paths: list[Text] = Field(default_factory=list)
    """Beginnings of paths that may be fetched; empty for the folders of the start pages."""
    depth: Count = 0
    """Links to follow from a start page; higher collects more, 0 only the start pages."""
    pages: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Pages to ask for at most; higher collects more."""
    delay_s: Annotated[float, Field(ge=0.5, le=3600)] = 1.0
    """Seconds between two requests to a host; robots.txt may ask for more."""
    domain: Text = "general"
    """Subject that the records get."""

    @field_validator("licence")
    @classmethod
    def _is_licence(cls, licence: str) -> str:
        if licence.strip().lower() in {*_NO_LICENCE, ""}:
            raise ValueError("must name what allows the use")
        return licence

    @field_validator("start", "terms")
    @classmethod
    def _are_addresses(cls, value: Any) -> Any:
        for text in [value] if isinstance(value, str) else value:
            try:
                url = httpx.URL(text)
            except (httpx.InvalidURL, ValueError) as error:
                raise ValueError(f"{text!r} must be a web address") from error
            if url.scheme not in _PORTS or not url.host or url.userinfo:
                raise ValueError(f"{text!r} must be a web address, without a password")
        return value

    @field_validator("paths")
    @classmethod
    def _are_paths(cls, paths: list[str]) -> list[str]:
        if wrong := [path for path in paths if not path.startswith("/")]:
            raise ValueError(f"{wrong[0]!r} must begin with /")
        return paths

    def has_host(self, url: httpx.URL) -> bool:
        """Return whether it is on host and port of a start page; 80 and 443 count as the same."""
        return _place(url) in {_place(httpx.URL(text)) for text in self.start}

    def holds(self, url: httpx.URL) -> bool:
        """Return whether the page may be fetched as one of this site's."""
        folders = [httpx.URL(text).path.rpartition("/")[0] + "/" for text in self.start]
        return self.has_host(url) and url.path.startswith(tuple(self.paths or folders))


class Sites(Settings):
    """All that one collection may ask for."""

    contact: Text
    """E-mail address or page of the person who collects; sent with every request."""
    sites: Annotated[list[Site], Field(min_length=1)]
    """What may be collected; nothing else is."""
    page_bytes: Annotated[int, Field(ge=1000, le=100_000_000)] = 5_000_000
    """Bytes that a page may have, decompressed; higher keeps longer pages."""
    seconds: Annotated[float, Field(ge=1, le=600)] = 30.0
    """Seconds that one answer may take; higher waits for slower servers."""
    longest_delay_s: Positive = 60.0
    """Seconds to wait because a server asks for it; a site that asks for more is left out."""
    most_depth: AtLeastOne = 500
    """Elements in elements that a page may have; higher reads odder pages, and takes longer."""

    @model_validator(mode="after")
    def _has_contact(self) -> Sites:
        if not _CONTACT.fullmatch(self.contact) or _PLACEHOLDER.search(self.contact):
            raise ValueError(
                f"contact must be your own e-mail address or https page, got {self.contact[:60]!r}"
            )
        return self


def read_sites(path: Path, *, contact: str | None = None) -> Sites:
    """Read a file of sites.

    Args:
        contact: stands for the file's own.

    Raises:
        DataError: if a field is missing, unknown, of the wrong type or impossible; a site without a
            licence and the page that says so is one.
    """
    raw = read_yaml(read_text(path, most=MOST_CHARACTERS, kind="YAML", error=DataError), str(path))
    if not isinstance(raw, dict):
        raise DataError(f"{path}: must hold contact and sites; see examples/sites.yaml")
    if contact:
        raw["contact"] = contact
    try:
        return Sites.model_validate(raw)
    except ValidationError as error:
        raise DataError(f"{path}: " + "; ".join(map(_explain, error.errors()[:8]))) from error


def _explain(problem: Any) -> str:
    field = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message[:1].lower() + message[1:]
    if problem["type"] == "extra_forbidden":
        return f"{field} is not a setting; remove it"
    if problem["loc"][-1:] in (("licence",), ("terms",)):
        return f"{field}: {message}; no site is collected without licence and terms that say so"
    return f"{field}: {message}; correct it".removeprefix(": ")


def _place(url: httpx.URL) -> tuple[str, int | None]:
    return url.host.rstrip("."), None if url.port == _PORTS.get(url.scheme) else url.port
