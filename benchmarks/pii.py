"""Claim: personal data and secrets are found, in Japanese and English, and look-alikes are left:
recall ≥ 0.98, precision ≥ 0.95 on hand-made strings of which half hold nothing.

Beside it, on the same strings: Presidio with a blank spaCy pipeline (no model of names installs
here) and Japan among its telephone regions, and datatrove's PII formatter. A peer that is not
installed is named with the line that installs it. A marked span counts as found where all of its
characters are covered: by spans of its kind for our claims, by any spans in the table of peers,
where a span is right if it touches anything marked. Each peer is also measured on the kinds alone
that it looks for. The rules were tuned on one half of the strings, never on the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the labelled strings of the tests

from aegis.data.personal import find_personal
from benchmarks.claims import Claim, Interval, median, report
from tests.data.personal.labelled import Labelled, labelled_strings
from tests.data.personal.scores import Found, Score, score

RECALL, PRECISION = 0.98, 0.95
PRESIDIO_KINDS = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP",
    "US_PASSPORT": "PASSPORT",
    "US_DRIVER_LICENSE": "LICENCE",
    "US_BANK_NUMBER": "BANK_ACCOUNT",
}
SURE = 0.4  # the score that its telephone numbers get; below it stands whatever has nine digits


@dataclass(frozen=True)
class Detector:
    """A way of finding personal data, and the kinds that it looks for (none: all)."""

    name: str
    find: Callable[[str], Found]
    kinds: frozenset[str] = frozenset()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timings of each detector, in turn")
    parser.add_argument("--json", type=Path, help="write claims and table to this file")
    options = parser.parse_args()
    rows = labelled_strings()
    detectors, missing = [Detector("aegis", find_personal)], []
    for build in (datatrove, presidio):
        try:
            detectors += build()
        except ImportError as error:
            missing.append(f"{build.__name__} ({error}): pip install {PACKAGES[build]}")
    speeds = timings(detectors, rows, options.rounds)
    claims, faster = list(our_claims(rows)), []
    for detector in detectors[1:]:
        pairs = zip(speeds["aegis"], speeds[detector.name], strict=True)
        ratio, low, high = median([ours / theirs for ours, theirs in pairs])
        faster.append(f"strings/s, aegis / {detector.name}: {ratio:.2f} [{low:.2f}, {high:.2f}]")
    table = [line for detector in detectors for line in lines_of(detector, rows, speeds)]
    kept = report(
        claims,
        lines=[HEADING, *table, "", *faster, *missing],
        json_path=options.json,
        details={"table": table, "missing": missing},
    )
    sys.exit(not kept)


def our_claims(rows: Sequence[Labelled]) -> Iterator[Claim]:
    """Yield recall and precision of ours, on all strings, by half and by language."""
    groups: dict[str, Callable[[Labelled], bool]] = {
        "all strings": lambda row: True,
        "held back": lambda row: row.held_back,
        "tuned on": lambda row: not row.held_back,
        "Japanese": lambda row: row.language == "ja",
        "English": lambda row: row.language == "en",
    }
    for name, belongs in groups.items():
        result = score([row for row in rows if belongs(row)], find_personal)
        recall, precision = intervals(result)
        yield Claim(f"recall, {name}", recall, RECALL, result.marked, floor=True)
        yield Claim(f"precision, {name}", precision, PRECISION, result.found, floor=True)


def intervals(result: Score) -> tuple[Interval, Interval]:
    """Return recall and precision with exact 95 % intervals."""
    pairs = []
    for hits, n in ((result.covered, result.marked), (result.right, result.found)):
        if not n:
            pairs.append((float("nan"),) * 3)
            continue
        ends = binomtest(hits, n).proportion_ci(method="exact")
        pairs.append((hits / n, float(ends.low), float(ends.high)))
    return pairs[0], pairs[1]


HEADING = (
    f"{'any kind counts':38} {'strings':>8} {'marked':>7} {'recall':>7}"
    f" {'precision':>10} {'strings/s':>10}"
)


def lines_of(
    detector: Detector, rows: Sequence[Labelled], speeds: dict[str, list[float]]
) -> Iterator[str]:
    """Yield a detector's figures on the held-back strings, on all, and on its own kinds alone."""
    groups = {"held back": [row for row in rows if row.held_back], "all": rows}
    if detector.kinds:
        groups["its own kinds"] = [
            replace(row, spans=tuple(span for span in row.spans if span[2] in detector.kinds))
            for row in rows
            if not row.spans or any(span[2] in detector.kinds for span in row.spans)
        ]
    for name, group in groups.items():
        result = score(group, detector.find, any_kind=True)
        speed = f"{float(np.median(speeds[detector.name])):10.0f}" if name == "all" else ""
        yield (
            f"{detector.name + ', ' + name:38} {len(group):8} {result.marked:7} "
            f"{result.recall:7.3f} {result.precision:10.3f} {speed}"
        )


def timings(
    detectors: Sequence[Detector], rows: Sequence[Labelled], rounds: int
) -> dict[str, list[float]]:
    """Return strings a second of processor time by detector, one value a round, all in turn."""
    speeds: dict[str, list[float]] = {detector.name: [] for detector in detectors}
    for round_ in range(rounds + 1):
        for detector in detectors:
            started = time.process_time()
            for row in rows:
                detector.find(row.text)
            if round_:  # the first one warms up
                speeds[detector.name].append(len(rows) / (time.process_time() - started))
    return speeds


def datatrove() -> list[Detector]:
    """Build datatrove's PII formatter; private IP addresses are looked for, too."""
    from datatrove.pipeline.formatters.pii import PIIFormatter

    formatter = PIIFormatter(only_remove_public_ips=False)
    replacers = ((formatter.emails_replacer, "EMAIL"), (formatter.ip_replacer, "IP"))

    def find(text: str) -> list[tuple[int, int, str]]:
        return [
            (*match.span(), kind)
            for replacer, kind in replacers
            for match in replacer.regex.finditer(text)
            if not replacer.validator or replacer.validator(match.group(0))
        ]

    return [Detector("datatrove", find, frozenset({"EMAIL", "IP"}))]


def presidio() -> list[Detector]:
    """Build Presidio on a blank pipeline."""
    import spacy  # pyright: ignore[reportMissingImports]
    import tldextract  # pyright: ignore[reportMissingImports]
    from presidio_analyzer import AnalyzerEngine  # pyright: ignore[reportMissingImports]
    from presidio_analyzer.nlp_engine import (  # pyright: ignore[reportMissingImports]
        SpacyNlpEngine,
    )
    from presidio_analyzer.predefined_recognizers import (  # pyright: ignore[reportMissingImports]
        PhoneRecognizer,
    )

    class Blank(SpacyNlpEngine):
        def __init__(self) -> None:
            super().__init__()
            self.nlp: dict[str, Any] = {"en": spacy.blank("xx")}

        def load(self) -> None:
            """Keep the blank pipeline."""

    # Its list of public suffixes would be fetched from the web.
    tldextract.tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=())

    engine = AnalyzerEngine(nlp_engine=Blank(), supported_languages=["en"])
    engine.registry.remove_recognizer("PhoneRecognizer")
    regions = (*PhoneRecognizer.DEFAULT_SUPPORTED_REGIONS, "JP")
    engine.registry.add_recognizer(PhoneRecognizer(supported_regions=regions))

    def find(text: str) -> list[tuple[int, int, str]]:
        # Any date and any URL would be personal, which would cost it precision.
        return [
            (result.start, result.end, PRESIDIO_KINDS.get(result.entity_type, "OTHER"))
            for result in engine.analyze(text, language="en", score_threshold=SURE)
            if result.entity_type not in ("DATE_TIME", "URL")
        ]

    return [Detector("presidio", find, frozenset(PRESIDIO_KINDS.values()))]


PACKAGES = {datatrove: "datatrove", presidio: "presidio-analyzer"}

if __name__ == "__main__":
    main()
