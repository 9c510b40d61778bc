"""Fetch one page politely: from a checked address, within limits of size and time, at a pace."""

from __future__ import annotations

import contextlib
import re
import ssl
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpx

from aegis import __version__
from aegis.data.sources.retry_after import retry_after
from aegis.data.sources.web.addresses import refusal, resolve

AGENT = "AEGIS-collect"
"""The product token that robots.txt may name."""
HTML, PLAIN, PDF = ("text/html", "application/xhtml+xml"), "text/plain", "application/pdf"
_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 5
_PART = 1 << 16
_TYPES = (*HTML, PLAIN, PDF)
# A way out of the folder, for some servers.
_SLASH = r"(?:/|%2f|\\|%5c)"
_DOTS = re.compile(rf"{_SLASH}(?:\.|%2e){{1,2}}(?:{_SLASH}|\Z)", re.IGNORECASE)


class RefusedError(Exception):
    """A page is not collected.

    Args:
        reason: `kind: detail`.
        lasting: asking again within the day would not help.
    """

    def __init__(self, reason: str, *, lasting: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.lasting = reason, lasting


@dataclass(frozen=True)
class Fetched:
    """An answer that is no redirect.

    Args:
        url: where it came from in the end.
        body: decompressed; empty if the status is not 2xx or the type is none of a page.
    """

    url: str
    status: int
    headers: httpx.Headers
    body: bytes


class _TimedStream(httpcore.NetworkStream):
    """A connection on which a whole exchange, not each read, has a time limit."""

    def __init__(self, stream: httpcore.NetworkStream, backend: CheckedBackend) -> None:
        self._stream, self._backend = stream, backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._backend.time_left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._backend.time_left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        timeout = self._backend.time_left(timeout)
        return _TimedStream(
            self._stream.start_tls(ssl_context, server_hostname, timeout), self._backend
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class CheckedBackend(httpcore.SyncBackend):
    """Resolves a name once, checks every address, connects to one of them, never to a name.

    Host and SNI stay the URL's own: they are set above this layer.

    Args:
        resolve: (host, port) → addresses.
        refuse: address → why not, or None.
    """

    def __init__(
        self,
        resolve: Callable[[str, int], Sequence[str]] = resolve,
        refuse: Callable[[str], str | None] = refusal,
    ) -> None:
        self.resolve, self.refuse = resolve, refuse
        self.deadline_s = float("inf")

    def time_left(self, timeout: float | None) -> float:
        left = self.deadline_s - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the whole exchange took too long")
        return left if timeout is None else min(timeout, left)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self.resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"{host} has no address") from error
        for address in addresses:
            if reason := self.refuse(address):
                raise RefusedError(f"address: {host} is {address} ({reason})", lasting=True)
        problem: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                stream = super().connect_tcp(
                    address, port, self.time_left(timeout), local_address, socket_options
                )
                return _TimedStream(stream, self)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem


class _CheckedTransport(httpx.HTTPTransport):
    """httpx's own transport over the checked backend; no proxy, which would connect for us."""

    def __init__(self, backend: CheckedBackend, context: ssl.SSLContext) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context, network_backend=backend, keepalive_expiry=60
        )


@dataclass
class Fetcher:
    """Asks for pages one at a time, each host at its own pace.

    Args:
        contact: where an owner of a site reaches the person who collects.
        backend: what connects.
        context: whose certificates count.
        page_bytes: most that a page may have once it is decompressed.
        seconds: most that one exchange may take.
        longest_delay_s: most that is waited because a server asks for it.
        delays: seconds between two requests to a host.
    """

    contact: str
    backend: CheckedBackend = field(default_factory=CheckedBackend)
    context: ssl.SSLContext = field(default_factory=httpx.create_ssl_context)
    page_bytes: int = 5_000_000
    seconds: float = 30.0
    longest_delay_s: float = 60.0
    delays: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        self.ready_at: dict[str, float] = {}
        self.requests = self.bytes = 0
        self._client = httpx.Client(
            transport=_CheckedTransport(self.backend, self.context),
            headers={
                "User-Agent": f"{AGENT}/{__version__} (+{self.contact})",
                "Accept": ", ".join((*HTML, PLAIN, PDF)),
                "Accept-Encoding": "gzip",
            },
            timeout=self.seconds,
            trust_env=False,
        )

    def close(self) -> None:
        self._client.close()

    def get(
        self,
        url: str,
        *,
        permit: Callable[[httpx.URL], None] = lambda _: None,
        conditions: Mapping[str, str] | None = None,
        cut_at: int | None = None,
    ) -> Fetched:
        """Follow at most five redirects to a page, each step permitted before it is asked for.

        Args:
            permit: raises RefusedError for a URL that must not be asked for.
            conditions: headers of a conditional request.
            cut_at: read so many bytes of any type and leave the rest, instead of refusing a longer
            body and not reading other types.

        Raises:
            RefusedError: if there is no answer, or none that may be used.
        """
        address = _parsed(url)
        for _ in range(_MOST_REDIRECTS + 1):
            permit(address)
            with _explained():
                fetched = self._patiently(address, conditions or {}, cut_at)
            if fetched.status not in _REDIRECTS:
                return fetched
            if not (location := fetched.headers.get("location")):
                raise RefusedError(f"redirect: {fetched.status} without a place", lasting=True)
            address = _parsed(location, after=address)
        raise RefusedError(f"redirect: more than {_MOST_REDIRECTS}", lasting=True)

    def _patiently(
        self, url: httpx.URL, conditions: Mapping[str, str], cut_at: int | None
    ) -> Fetched:
        """Ask again, once, where the server is busy and says so."""
        fetched = self._once(url, conditions, cut_at)
        told = retry_after(fetched.headers)
        wait = 1.0 if told is None else told
        if (fetched.status == 429 or fetched.status >= 500) and wait <= self.longest_delay_s:
            self.ready_at[url.host] = max(self.ready_at[url.host], self.clock() + wait)
            return self._once(url, conditions, cut_at)
        return fetched

    def _once(self, url: httpx.URL, conditions: Mapping[str, str], cut_at: int | None) -> Fetched:
        self.sleep(max(0.0, self.ready_at.get(url.host, 0.0) - self.clock()))
        self.backend.deadline_s = time.monotonic() + self.seconds
        self.requests += 1
        accept = {"Accept": "*/*"} if cut_at else {}  # a 406 would read as "there are no rules"
        try:
            with self._client.stream("GET", url, headers={**conditions, **accept}) as response:
                is_wanted = response.is_success and (cut_at or type_of(response.headers) in _TYPES)
                body = self._body(response, cut_at) if is_wanted else b""
                return Fetched(str(url), response.status_code, response.headers, body)
        finally:
            self._client.cookies.clear()  # nobody is followed, and nobody logged in
            self.ready_at[url.host] = self.clock() + self.delays.get(url.host, 1.0)

    def _body(self, response: httpx.Response, cut_at: int | None) -> bytes:
        encoding = response.headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise RefusedError(f"encoding: {encoding[:40]!r} was not asked for", lasting=True)
        most = cut_at or self.page_bytes
        body = bytearray()
        chunks = response.iter_raw(_PART)
        for part in _unzipped(chunks) if encoding.endswith("gzip") else chunks:
            self.bytes += len(part)
            body += part
            if len(body) > most:
                if cut_at:
                    return bytes(body[:most])
                raise RefusedError(f"size: more than {most:,} bytes", lasting=True)
        return bytes(body)


def _unzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress gzip a small part at a time: a bomb is left as soon as it is too large."""
    unzip = zlib.decompressobj(wbits=31)
    for chunk in chunks:
        while chunk:
            if unzip.eof:
                unzip = zlib.decompressobj(wbits=31)
            yield unzip.decompress(chunk, _PART)
            chunk = unzip.unused_data if unzip.eof else unzip.unconsumed_tail
    yield unzip.flush()
    if not unzip.eof:
        raise RefusedError("encoding: gzip is cut short")


def type_of(headers: httpx.Headers) -> str:
    """Return the type of content without its parameters."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _parsed(url: str, after: httpx.URL | None = None) -> httpx.URL:
    """Return a web address without a fragment, as seen from the page `after`."""
    try:
        address = (after.join(url) if after else httpx.URL(url)).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError, UnicodeError) as error:
        raise RefusedError("address: not a URL", lasting=True) from error
    if address.scheme not in ("http", "https") or not address.host or "%" in address.host:
        raise RefusedError("address: not a URL of the web", lasting=True)
    if _DOTS.search(address.raw_path.decode("ascii", "replace").partition("?")[0]):
        raise RefusedError("address: holds escaped dots", lasting=True)
    if address.userinfo or len(str(address)) > 2000:
        raise RefusedError("address: holds a password, or is too long", lasting=True)
    return address


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except httpx.TimeoutException as error:
        raise RefusedError("time: no whole answer in time") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, zlib.error) as error:
        raise RefusedError(f"network: {str(error)[:200] or type(error).__name__}") from error
