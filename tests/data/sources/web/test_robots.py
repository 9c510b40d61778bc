"""RFC 9309: its own examples, and the cases that the test suites of Google's parser, its
specification tests and crawler-commons share, in files of ours."""

from __future__ import annotations

import pytest

from aegis.data.sources.web.fetch import AGENT
from aegis.data.sources.web.robots import MOST_BYTES, Robots

RFC_SIMPLE = """User-Agent: *
Disallow: *.gif$
Disallow: /example/
Allow: /publications/

User-Agent: foobot
Disallow:/
Allow:/example/page.html
Allow:/example/allowed.gif

User-Agent: barbot
User-Agent: bazbot
Disallow: /example/page.html

User-Agent: quxbot
"""
RFC_MERGED = """user-agent: ExampleBot
disallow: /foo
disallow: /bar

user-agent: ExampleBot
disallow: /baz
"""
RFC_LONGEST = """User-Agent: foobot
Allow: /example/page/
Disallow: /example/page/disallowed.gif
"""
# robots.txt, agent, path, allowed
RFC_EXAMPLES = [
    (RFC_SIMPLE, "foobot", "/example/page.html", True),
    (RFC_SIMPLE, "foobot", "/example/allowed.gif", True),
    (RFC_SIMPLE, "foobot", "/example/other.html", False),
    (RFC_SIMPLE, "foobot", "/", False),
    (RFC_SIMPLE, "barbot", "/example/page.html", False),
    (RFC_SIMPLE, "bazbot", "/example/page.html", False),
    (RFC_SIMPLE, "bazbot", "/example/other.html", True),
    (RFC_SIMPLE, "quxbot", "/example/page.html", True),
    (RFC_SIMPLE, "anybot", "/a/picture.gif", False),
    (RFC_SIMPLE, "anybot", "/a/picture.gif?size=2", True),
    (RFC_SIMPLE, "anybot", "/example/x", False),
    (RFC_SIMPLE, "anybot", "/publications/x", True),
    (RFC_MERGED, "ExampleBot", "/foo", False),
    (RFC_MERGED, "ExampleBot", "/baz", False),
    (RFC_MERGED, "ExampleBot", "/qux", True),
    (RFC_LONGEST, "foobot", "/example/page/a.html", True),
    (RFC_LONGEST, "foobot", "/example/page/disallowed.gif", False),
]
# The RFC's tables of escapes and special characters: a rule and a path that it matches, or not.
RFC_MATCHES = [
    ("/foo/bar?baz=quz", "/foo/bar?baz=quz", True),
    ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar", True),
    ("/foo/bar?baz=https%3A%2F%2Ffoo.bar", "/foo/bar?baz=https://foo.bar", True),
    ("/foo/bar/ツ", "/foo/bar/%E3%83%84", True),
    ("/foo/bar/%E3%83%84", "/foo/bar/%E3%83%84", True),
    ("/foo/bar/%e3%83%84", "/foo/bar/ツ", True),
    ("/foo/bar/%62%61%7A", "/foo/bar/baz", True),
    ("/path/file-with-a-%2A.html", "/path/file-with-a-*.html", True),
    ("/path/file-with-a-%2A.html", "/path/file-with-a-b.html", False),
    ("/path/foo-%24", "/path/foo-$", True),
    ("/path/foo-%24", "/path/foo-", False),
    ("/this/*/exactly", "/this/path/exactly", True),
    ("/this/*/exactly", "/this/exactly", False),
    ("/this/path/exactly$", "/this/path/exactly", True),
    ("/this/path/exactly$", "/this/path/exactly/not", False),
    ("/a%2Fb", "/a/b", False),
    ("/*/print", "/x?to=/print", True),
    ("/*?*/print", "/x?to=%2Fprint", True),
]
GROUPS = """allow: /foo/bar/

user-agent: FooBot
disallow: /
allow: /x/
user-agent: BarBot
disallow: /
allow: /y/


allow: /w/
user-agent: BazBot

user-agent: FooBot
allow: /z/
disallow: /
"""
SPACED = "User-Agent: *\nDisallow: /\nUser-Agent: Foo Bar\nAllow: /x/\nDisallow: /\n"
FISH = "user-agent: foobot\ndisallow: /\nallow: "
SUITES = [
    ("", "FooBot", "/", True),
    ("user-agent: FooBot\ndisallow: /\n", "FooBot", "/x/y", False),
    ("foo: FooBot\nbar: /\n", "FooBot", "/x/y", True),
    ("user-agent FooBot\ndisallow /\n", "FooBot", "/x/y", False),
    (GROUPS, "FooBot", "/x/b", True),
    (GROUPS, "FooBot", "/z/d", True),
    (GROUPS, "FooBot", "/y/c", False),
    (GROUPS, "BarBot", "/y/c", True),
    (GROUPS, "BarBot", "/w/a", True),
    (GROUPS, "BarBot", "/z/d", False),
    (GROUPS, "BazBot", "/z/d", True),
    (GROUPS, "FooBot", "/foo/bar/", False),
    (GROUPS, "BarBot", "/foo/bar/", False),
    (GROUPS, "BazBot", "/foo/bar/", False),
    ("USER-AGENT: FooBot\nALLOW: /x/\nDISALLOW: /\n", "foobot", "/x/y", True),
    ("uSeR-aGeNt: FooBot\nAlLoW: /x/\ndIsAlLoW: /\n", "foobot", "/a/b", False),
    ("User-Agent: FOO BAR\nAllow: /x/\nDisallow: /\n", "Foo", "/a/b", False),
    ("User-Agent: FOO BAR\nAllow: /x/\nDisallow: /\n", "foo", "/x/y", True),
    (SPACED, "Foo", "/x/y", True),
    (SPACED, "Qux", "/x/y", False),
    ("user-agent: *\nallow: /\nuser-agent: FooBot\ndisallow: /\n", "FooBot", "/x", False),
    ("user-agent: *\nallow: /\nuser-agent: FooBot\ndisallow: /\n", "BarBot", "/x", True),
    ("user-agent: FooBot\nallow: /\nuser-agent: BarBot\ndisallow: /\n", "QuxBot", "/x", True),
    ("user-agent: FooBot\ndisallow: /X/\n", "FooBot", "/x/y", True),
    ("user-agent: FooBot\ndisallow: /x/page.html\nallow: /x/\n", "FooBot", "/x/page.html", False),
    ("user-agent: FooBot\nallow: /x/page.html\ndisallow: /x/\n", "FooBot", "/x/page.html", True),
    ("user-agent: FooBot\nallow: /x/page.html\ndisallow: /x/\n", "FooBot", "/x/", False),
    ("user-agent: FooBot\ndisallow: \nallow: \n", "FooBot", "/x/page.html", True),
    ("user-agent: FooBot\ndisallow: /\nallow: /\n", "FooBot", "/x/page.html", True),
    ("user-agent: FooBot\ndisallow: /x\nallow: /x/\n", "FooBot", "/x", False),
    ("user-agent: FooBot\ndisallow: /x\nallow: /x/\n", "FooBot", "/x/", True),
    ("user-agent: FooBot\nallow: /page\ndisallow: /*.html\n", "FooBot", "/page.html", False),
    ("user-agent: FooBot\nallow: /page\ndisallow: /*.html\n", "FooBot", "/page", True),
    ("user-agent: FooBot\nallow: /x/page.\ndisallow: /*.html\n", "FooBot", "/x/page.html", True),
    ("user-agent: FooBot\nallow: /x/page.\ndisallow: /*.html\n", "FooBot", "/x/y.html", False),
    ("User-agent: *\nDisallow: /x/\nUser-agent: FooBot\nDisallow: /y/\n", "FooBot", "/x/p", True),
    ("User-agent: *\nDisallow: /x/\nUser-agent: FooBot\nDisallow: /y/\n", "FooBot", "/y/p", False),
    ("User-agent: a\nDisallow: /foo/quz#qux\nAllow: /\n", "a", "/foo/quz", False),
    ("User-agent: a\n# Disallow: /\nAllow: /b\n", "a", "/c", True),
    ("User-agent: a\nDisallow: /foo/bar$\nAllow: /foo/bar/qux\n", "a", "/foo/bar", False),
    ("User-agent: a\nDisallow: /foo/bar$\nAllow: /foo/bar/qux\n", "a", "/foo/bar/", True),
    ("User-Agent: *\nAllow: /s/index.html\nDisallow: /\n", "a", "/s/", True),
    ("User-Agent: *\nAllow: /s/index.html\nDisallow: /\n", "a", "/s/index.htm", False),
    (FISH + "/fish", "foobot", "/fish.html?id=anything", True),
    (FISH + "/fish", "foobot", "/fishheads/yummy.html", True),
    (FISH + "/fish", "foobot", "/Fish.asp", False),
    (FISH + "/fish", "foobot", "/?id=fish", False),
    (FISH + "/fish*", "foobot", "/fishheads", True),
    (FISH + "/fish*", "foobot", "/catfish", False),
    (FISH + "/fish/", "foobot", "/fish/?salmon", True),
    (FISH + "/fish/", "foobot", "/fish", False),
    (FISH + "/*.php", "foobot", "/folder/any.php.file.html", True),
    (FISH + "/*.php", "foobot", "//folder/any.php.file.html", True),
    (FISH + "/*.php", "foobot", "/index?f=filename.php/", True),
    (FISH + "/*.php", "foobot", "/windows.PHP", False),
    (FISH + "/*.php$", "foobot", "/folder/filename.php", True),
    (FISH + "/*.php$", "foobot", "/filename.php?parameters", False),
    (FISH + "/*.php$", "foobot", "/filename.php5", False),
    (FISH + "/fish*.php", "foobot", "/fishheads/catfish.php?parameters", True),
    (FISH + "/fish*.php", "foobot", "/Fish.PHP", False),
    (FISH + "/$", "foobot", "/", True),
    (FISH + "/$", "foobot", "/page.html", False),
    ("User-Agent: foo\rAllow: /some/path\rUser-Agent: bar\r\rDisallow: /\r", "bar", "/x", False),
    ("User-Agent: foo\r\nAllow: /some/path\r\nDisallow: /", "foo", "/some/path", True),
    ("\ufeffUser-Agent: foo\nDisallow: /x\n", "foo", "/x", False),
    (
        "User-agent: BarBot\nSitemap: https://a/s\nUser-agent: *\nDisallow: /\n",
        "BarBot",
        "/",
        False,
    ),
    ("User-agent: BarBot\nUnknown: x\nUser-agent: *\nDisallow: /\n", "FooBot", "/", False),
    ("User-agent: foo\nCrawl-delay: 5\nUser-agent: bar\nDisallow: /\n", "foo", "/", False),
    ("User-agent: foo\nDisallow: /robots.txt\n", "foo", "/robots.txt", True),
]
# What would slip through, or in, if a name counted by a part of it.
TOKENS = [
    ("User-agent: *\nDisallow: /\nUser-agent: a\nAllow: /\n", "aegis-collect", False),
    ("User-agent: *\nDisallow: /\nUser-agent: aegis\nAllow: /\n", "aegis-collect", False),
    ("User-agent: *\nAllow: /\nUser-agent: collect\nDisallow: /\n", "aegis-collect", True),
    ("User-agent: AEGIS-Collect/2.1\nDisallow: /\n", "aegis-collect", False),
    ("User-agent: * # everybody\nDisallow: /\n", "aegis-collect", False),
    ("User-agent: foo # bar\nDisallow: /\n", "foo", False),
    ("User-agent: \nDisallow: /\n", "foo", True),
    ("<html><body>User-agent</body></html>", "foo", True),
]


@pytest.mark.parametrize(("text", "agent", "path", "allowed"), [*RFC_EXAMPLES, *SUITES])
def test_examples_of_the_rfc_and_of_crawlers_suites(
    text: str, agent: str, path: str, allowed: bool
) -> None:
    assert Robots(text.encode(), agent).allows(f"http://foo.bar{path}") is allowed


def test_there_are_as_many_cases_as_promised() -> None:
    assert len({(text, agent, path) for text, agent, path, _ in SUITES}) == len(SUITES) >= 40


@pytest.mark.parametrize(("rule", "path", "matches"), RFC_MATCHES)
def test_escapes_and_special_characters_of_the_rfc(rule: str, path: str, matches: bool) -> None:
    url = f"http://foo.bar{path}"
    assert Robots(f"user-agent: *\ndisallow: {rule}".encode()).allows(url) is not matches
    allowing = Robots(f"user-agent: *\ndisallow: /\nallow: {rule}".encode())
    assert allowing.allows(url) is matches


@pytest.mark.parametrize(("text", "agent", "allowed"), TOKENS)
def test_a_product_token_counts_as_a_whole(text: str, agent: str, allowed: bool) -> None:
    assert Robots(text.encode(), agent).allows("http://foo.bar/x") is allowed


def test_what_is_behind_500_kib_does_not_count_nor_half_a_line() -> None:
    start = b"user-agent: *\ndisallow: /a\n"
    filler = b"#" * (MOST_BYTES - len(start) - 12) + b"\n"
    whole = start + filler + b"allow: /abc" + b"def\ndisallow: /z\n"
    assert len(start + filler + b"allow: /abc") == MOST_BYTES
    robots = Robots(whole)
    assert not robots.allows("http://a/abc")
    assert robots.allows("http://a/z")
    assert Robots(start + b"allow: /abcdef").allows("http://a/abcdef")


def test_line_ends_that_only_python_knows_end_no_line() -> None:
    text = "user-agent: *\ndisallow: /a\u2028allow: /\n"
    assert not Robots(text.encode()).allows("http://h/a%E2%80%A8allow:%20/")
    assert Robots(b"user-agent: *\n#\x0bdisallow: /\n").allows("http://h/x")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_byte_order_mark_does_not_hide_the_first_group(encoding: str) -> None:
    assert not Robots("User-agent: *\nDisallow: /".encode(encoding)).allows("http://h/x")


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("user-agent: *\ncrawl-delay: 2.5", 2.5),
        (f"user-agent: *\ncrawl-delay: 9\nuser-agent: {AGENT}\ncrawl-delay: 3", 3.0),
        ("user-agent: *\nrequest-rate: 1/10", 10.0),
        ("user-agent: *\ncrawl-delay: soon", 0.0),
        ("user-agent: other\ncrawl-delay: 7", 0.0),
    ],
)
def test_the_delay_that_a_host_asks_for(text: str, delay_s: float) -> None:
    assert Robots(text.encode()).delay_s == delay_s


@pytest.mark.parametrize(
    ("line", "reserved"),
    [
        ("Content-Signal: search=yes, ai-train=no", True),
        ("content-usage: train-ai=n", True),
        ("Content-Signal: search=no, ai-train=yes", False),
        ("# Content-Signal: ai-train=no", False),
    ],
)
def test_signals_against_training(line: str, reserved: bool) -> None:
    assert bool(Robots(f"user-agent: *\n{line}\nallow: /".encode()).reservation) is reserved
