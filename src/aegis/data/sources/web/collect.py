"""Collect the pages of the listed sites, each with where it is from and why it may be used."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx

from aegis.data.folder import KIND, DataWriter, StepOutcome, writing_data
from aegis.data.personal import mask_everywhere, mask_personal_data
from aegis.data.records import Plain, Provenance, Rejected
from aegis.data.sources.web.extract import Extractor
from aegis.data.sources.web.fetch import Fetched, Fetcher, RefusedError
from aegis.data.sources.web.reservations import directives, require_unreserved
from aegis.data.sources.web.rules import DAY_S, RulesCache, utc
from aegis.data.sources.web.sites import Site, Sites
from aegis.data.sources.web.visits import Visit, VisitStore
from aegis.protocol.language import detect_language
from aegis.runs.reporter import bar
from aegis.storage.artifact import require_output
from aegis.storage.files import fingerprint, to_json
from aegis.storage.lock import only_process

_MOST_LINKS = 2000
_MOST_FAILURES = 5  # one after the other, before a site is left
_FAILURES = ("network", "time: no", "status: 429", "status: 5")
_PERSONAL = "personal data"
SITES_FILE = "sites.json"


@dataclass
class _Queue:
    """The pages of one site: what is waiting, and what became of each that was asked for.

    Args:
        done: (URL, reason against it or nothing, what robots.txt said).
    """

    site: Site
    waiting: deque[tuple[str, int]]
    seen: set[str]
    done: list[tuple[str, str, str]] = field(default_factory=list)
    failures: int = 0

    @classmethod
    def of(cls, site: Site) -> _Queue:
        urls = list(
            dict.fromkeys(str(httpx.URL(text).copy_with(fragment=None)) for text in site.start)
        )
        return cls(site, deque((url, 0) for url in urls), set(urls))

    def next(self) -> tuple[str, int] | None:
        return self.waiting[0] if self.waiting and len(self.done) < self.site.pages else None

    def follow(self, links: Iterable[str], depth: int) -> None:
        for link in links:
            if depth <= self.site.depth and link not in self.seen:
                if self.site.holds(httpx.URL(link)):
                    self.waiting.append((link, depth))
                self.seen.add(link)


@dataclass
class Collector:
    """Visits page after page, of all sites that one whose host is ready first.

    Args:
        visits: what was read within the last day is not asked for again.
        rules: robots.txt and reservations of hosts.
        now: seconds since 1970.
        limits: of size and time; what was too much for others is asked for again.
    """

    fetcher: Fetcher
    rules: RulesCache
    visits: VisitStore
    extract: Callable[[bytes, str], Any]
    now: Callable[[], float]
    limits: str = ""

    def crawl(self, sites: Iterable[Site], advance: Callable[[], None]) -> list[_Queue]:
        """Ask for every page of every site, as far as the site's limits go."""
        queues = [_Queue.of(site) for site in sites]
        while ready := [queue for queue in queues if queue.next()]:
            queue = min(ready, key=self._ready_at)
            url, depth = queue.waiting.popleft()
            try:
                if queue.failures >= _MOST_FAILURES:
                    raise RefusedError(f"network: the site failed {_MOST_FAILURES} times in a row")
                visit, words = self._visit(queue.site, url)
                queue.done.append((url, "", words))
                queue.failures = 0
                queue.follow(visit.links, depth + 1)
            except RefusedError as error:
                queue.done.append((url, error.reason, ""))
                failed = error.reason.startswith(_FAILURES)
                queue.failures = queue.failures + 1 if failed else 0
            advance()
        return queues

    def _ready_at(self, queue: _Queue) -> float:
        return self.fetcher.ready_at.get(httpx.URL(queue.waiting[0][0]).host, 0.0)

    def _visit(self, site: Site, url: str) -> tuple[Visit, str]:
        """Return the page, from the disk if it was read within a day, and what permits it.

        Raises:
            RefusedError: if it must not be collected, or cannot.
        """
        words, place = "", url

        def permit(address: httpx.URL) -> None:
            nonlocal words, place
            words, place = "", str(address)
            words = self._permission(site, address)

        known = self.visits.get(url)
        if known and 0 <= self.now() - known.time_s < DAY_S:
            permit(httpx.URL(known.url))
            if known.place != known.url:
                permit(httpx.URL(known.place))
            if not known.reason:
                return known, words
            if known.place == known.url and known.limits == self.limits:
                raise RefusedError(known.reason)
        usable = known if known and not known.reason else None
        conditions = {
            "If-None-Match": usable.etag if usable else "",
            "If-Modified-Since": usable.modified if usable else "",
        }
        try:
            fetched = self.fetcher.get(
                url,
                permit=permit,
                conditions={name: value for name, value in conditions.items() if value},
            )
            visit = self._read(url, fetched, usable, site)
        except RefusedError as error:
            refused = Visit(url, url, self.now(), reason=error.reason, limits=self.limits)
            if error.lasting:
                self.visits.put(refused)
            elif not words and place != url and not error.reason.startswith(_PERSONAL):
                self.visits.put(replace(refused, place=place))  # it leads astray: not once more
            raise
        self.visits.put(visit)
        if visit.place != url:
            self.visits.put(replace(visit, url=visit.place))  # nor is where it led asked for again
        return visit, words

    def _permission(self, site: Site, address: httpx.URL) -> str:
        """Return what robots.txt says for the page; every step of a redirect is asked about."""
        if not site.holds(address):
            raise RefusedError("list: leads to a page that is not of the listed site")
        if _tells_of_somebody(address):
            raise RefusedError(f"{_PERSONAL}: in the address")
        delays = self.fetcher.delays
        delays[address.host] = max(site.delay_s, delays.get(address.host, 0.0))
        return self.rules.of(address).require_permitted(str(address))

    def _read(self, url: str, fetched: Fetched, known: Visit | None, site: Site) -> Visit:
        require_unreserved(fetched.headers.multi_items(), "header")
        if fetched.status == 304 and known:
            return replace(known, time_s=self.now())
        if fetched.status != 200:
            lasting = 400 <= fetched.status < 500 and fetched.status != 429
            raise RefusedError(f"status: {fetched.status}", lasting=lasting)
        page = self.extract(fetched.body, fetched.headers.get("content-type", ""))
        require_unreserved(page.metas, "page")
        if not page.text.strip():
            raise RefusedError("text: none", lasting=True)
        robots = {
            word
            for name, value in page.metas
            if name.lower() == "robots"
            for word in directives(value)
        }
        links = [] if "nofollow" in robots else page.links[:_MOST_LINKS]
        here = _joined(httpx.URL(fetched.url), page.base) or httpx.URL(fetched.url)
        (text, title), masked = mask_everywhere([page.text.strip(), page.title[:300]])
        return Visit(
            url,
            fetched.url,
            self.now(),
            text=text,
            title=title,
            links=tuple(_on_site(site, here, links)),
            masked=masked,
            etag=fetched.headers.get("etag", "")[:1000],
            modified=fetched.headers.get("last-modified", "")[:100],
        )


def collect(
    sites: Sites,
    target: Path,
    cache: Path,
    *,
    fetcher: Fetcher | None = None,
    now: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """Write a data folder of `plain.jsonl`, `rejected.jsonl` and `sites.json`; return the last.

    Cut anywhere, the same call goes on from the cache.

    Args:
        cache: where robots.txt and masked texts are kept.
        fetcher: one for tests, which may reach loopback; users have no way to give one.
        now: seconds since 1970.

    Raises:
        BadInputError: if the folder cannot be written; nothing is asked for.
    """
    require_output(target, kind=KIND)
    limits = {name: getattr(sites, name) for name in ("page_bytes", "seconds", "longest_delay_s")}
    fetcher = fetcher or Fetcher(sites.contact, **limits)
    extractor = Extractor(most_depth=sites.most_depth)
    rules, visits = RulesCache(cache / "rules", fetcher, now=now), VisitStore(cache / "pages")
    with only_process(cache), contextlib.closing(fetcher), contextlib.closing(extractor):
        limited = f"{sites.page_bytes} bytes, {sites.seconds:g} s, {sites.most_depth} deep"
        collector = Collector(fetcher, rules, visits, extractor, now, limited)
        most = (site.pages if site.depth else len(site.start) for site in sites.sites)
        with bar("collecting", sum(most)) as advance:
            queues = collector.crawl(sites.sites, advance)
    with writing_data(target, fingerprint("collect", sites.model_dump())) as writer:
        summary = _write(writer, queues, visits)
        summary |= {"requests": fetcher.requests, "bytes": fetcher.bytes}
        (writer.folder / SITES_FILE).write_text(to_json(summary), encoding="utf-8")
    return summary


def _write(writer: DataWriter, queues: list[_Queue], visits: VisitStore) -> dict[str, Any]:
    """Write pages and refusals in the order of the sites; return what each site gave."""
    rows: list[dict[str, Any]] = []
    reasons = Counter[str]()
    seen: dict[str, str] = {}
    for queue in queues:
        before, masked = writer.counts["plain"], 0
        for url, reason, words in queue.done:
            visit = visits.get(url) if not reason else None
            if visit:
                digest = hashlib.sha256(visit.text.encode()).hexdigest()
                first = seen.setdefault(visit.place, seen.setdefault(digest, url))
                reason = "" if first == url else f"duplicate: of {first}"
            if visit and not reason:
                writer.add(_plain(queue.site, visit, words))
                masked += visit.masked
                continue
            where = mask_personal_data(unquote(url))[0] if reason.startswith(_PERSONAL) else url
            writer.add(Rejected(where, reason or "cache: gone", {"site": queue.site.start[0]}))
            reasons[reason.partition(":")[0]] += 1
        pages = writer.counts["plain"] - before
        site = {"start": queue.site.start, "licence": queue.site.licence, "terms": queue.site.terms}
        waiting = len(queue.waiting)
        rows.append(
            {**site, "asked": len(queue.done), "pages": pages, "masked": masked, "waiting": waiting}
        )
    asked = sum(row["asked"] for row in rows)
    writer.log(
        StepOutcome("collect", 1, asked, writer.counts["plain"], dict(sorted(reasons.items())))
    )
    return {
        "sites": rows,
        "pages": writer.counts["plain"],
        "rejected": dict(sorted(reasons.items())),
    }


def _plain(site: Site, visit: Visit, words: str) -> Plain:
    host = httpx.URL(visit.place).host
    return Plain(
        id=f"web-{fingerprint(visit.place)[:16]}",
        text=visit.text,
        language=detect_language(visit.text),
        domain=site.domain,
        source=host,
        provenance=Provenance(
            source=host,
            url=visit.place,
            backend="web",
            licence=site.licence,
            time=utc(visit.time_s),
            robots=words,
        ),
        extra={"title": visit.title, "terms": site.terms},
    )


def _on_site(site: Site, here: httpx.URL, links: Iterable[str]) -> Iterator[str]:
    """Yield the links that stay on the site's hosts and tell of nobody."""
    for link in links:
        url = _joined(here, link)
        if url and site.has_host(url) and not _tells_of_somebody(url):
            yield str(url)


def _tells_of_somebody(url: httpx.URL) -> bool:
    return bool(mask_personal_data(unquote(url.raw_path.decode()))[1])


def _joined(here: httpx.URL, link: str) -> httpx.URL | None:
    try:
        return here.join(link.strip()).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError, UnicodeError):
        return None
