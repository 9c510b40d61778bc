from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from aegis.data.sources.web.sites import read_sites
from aegis.errors import BadInputError

ROOT = Path(__file__).parents[4]
GOOD = """
contact: crawl@somewhere.jp
sites:
  - start: [https://a.jp/law/index.html]
    licence: CC-BY-4.0
    terms: https://a.jp/terms
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sites.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "    licence: CC-BY-4.0\n",
            "",
            r"sites\.0\.licence: field required; no site is collected",
        ),
        ("CC-BY-4.0", '""', r"sites\.0\.licence: .*no site is collected"),
        ("CC-BY-4.0", "unknown", r"sites\.0\.licence: must name what allows the use"),
        ("CC-BY-4.0", "All rights reserved", r"sites\.0\.licence"),
        ("    terms: https://a.jp/terms\n", "", r"sites\.0\.terms: field required"),
        ("https://a.jp/terms", "see below", r"sites\.0\.terms: .*web address"),
        ("crawl@somewhere.jp", "me", "contact must be your own"),
        ("crawl@somewhere.jp", "you@example.org", "contact must be your own"),
        ("crawl@somewhere.jp", '"a@b.jp\\r\\nCookie: x"', "contact must be your own"),
        ("crawl@somewhere.jp", "https://example.com/me", "contact must be your own"),
        ("contact: crawl@somewhere.jp\n", "", "contact: field required"),
        ("https://a.jp/law/index.html", "file:///etc/passwd", "must be a web address"),
        ("https://a.jp/law/index.html", "https://u:p@a.jp/", "without a password"),
        ("https://a.jp/law/index.html", "'https://[::1/'", "must be a web address"),
        ("[https://a.jp/law/index.html]", "[]", r"sites\.0\.start: .*at least 1"),
        ("    licence", "    resolve: x\n    licence", r"sites\.0\.resolve is not a setting"),
        ("    licence", "    delay_s: 0\n    licence", r"sites\.0\.delay_s: .*0\.5"),
        ("    licence", "    paths: [law]\n    licence", "must begin with /"),
        ("sites:", "agent: Googlebot\nsites:", "agent is not a setting"),
        (GOOD, "[]", "must hold contact and sites"),
    ],
)
def test_what_cannot_be_collected_is_told_with_field_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in GOOD
    with pytest.raises(BadInputError, match=message):
        read_sites(write(tmp_path, GOOD.replace(old, new)))


def test_a_site_is_the_folders_of_its_start_pages_on_their_hosts(tmp_path: Path) -> None:
    site = read_sites(write(tmp_path, GOOD)).sites[0]
    inside = ["https://a.jp/law/", "http://a.jp/law/x?y=1", "https://A.jp:443/law/b/c"]
    outside = [
        "https://a.jp/", "https://a.jp/law", "https://b.a.jp/law/", "https://a.jp:8443/law/",
        "https://a.jp/other/../secret", "https://a.jp.evil.jp/law/",
    ]  # fmt: skip
    assert all(site.holds(httpx.URL(url)) for url in inside)
    assert not any(site.holds(httpx.URL(url)) for url in outside)


def test_the_example_needs_a_contact_and_is_good_otherwise() -> None:
    path = ROOT / "examples" / "sites.yaml"
    with pytest.raises(BadInputError, match="contact must be your own"):
        read_sites(path)
    sites = read_sites(path, contact="crawl@somewhere.jp")
    assert all(site.holds(httpx.URL(url)) for site in sites.sites for url in site.start)
