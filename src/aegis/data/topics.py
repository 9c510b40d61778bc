"""Topics: questions that a model is asked to think about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis.data.records import Rejected, parse_language, require_text
from aegis.errors import DataError
from aegis.inputs.encodings import NAMES, detect_encoding
from aegis.inputs.strict_json import parse_object
from aegis.inputs.strict_yaml import read_yaml
from aegis.inputs.text import has_no_end
from aegis.protocol.decisions import UNSAFE, Decision, parse_decision

_FIELDS = ("id", "question", "language", "domain", "decision")
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Topic:
    id: str
    question: str
    language: str
    domain: str
    decision: Decision


@dataclass(frozen=True)
class TopicList:
    """The topics of a file, the lines that are none, and the encoding, if it is not UTF-8."""

    topics: list[Topic]
    rejected: list[Rejected] = field(default_factory=list)
    encoding: str | None = None


def parse_topic(raw: dict[str, Any], *, where: str) -> Topic:
    """Return the topic in `raw`.

    Raises:
        DataError: if a field is missing, unknown or impossible; DENY and REFUSE are not allowed,
            because a generator that has not learned to refuse would write the harm out.
    """
    if unknown := sorted(raw.keys() - set(_FIELDS)):
        raise DataError(
            f"{where}: {unknown[0]!r} is not a field; known fields: {', '.join(_FIELDS)}"
        )
    question = require_text(raw.get("question"), "question", where)
    decision = parse_decision(raw.get("decision", "ALLOW"), where=where)
    if decision in UNSAFE:
        raise DataError(
            f"{where}: a topic's decision must be ALLOW or ESCALATION, got {decision.name}; "
            "remove the topic"
        )
    domain = str(raw.get("domain", "general"))
    language = parse_language(raw, question, where)
    name = str(raw.get("id", Path(where).name))  # ids are published, and folders tell of a person
    return Topic(name, question, language, domain, decision)


def read_topics(path: Path, *, skip_bad: bool = False) -> TopicList:
    """Read a YAML list of topics (.yaml, .yml) or one JSON object a line.

    UTF-8, UTF-16, Shift_JIS, EUC-JP and ISO-2022-JP are read.

    Args:
        skip_bad: set what is no topic aside instead of raising.

    Raises:
        DataError, ConfigError: if the file cannot be read, holds no topic or an id twice, or
            (without `skip_bad`) something that is no topic.
    """
    text, encoding = _decoded(path)
    topics, rejected = list[Topic](), list[Rejected]()
    yaml = path.suffix.lower() in (".yaml", ".yml")
    for where, raw in (_yaml_rows if yaml else _json_rows)(text, str(path)):
        try:
            if isinstance(raw, str):
                raw = parse_object(raw, where)
            if not isinstance(raw, dict):
                raise DataError(f"{where}: must have the fields {', '.join(_FIELDS)}; correct it")
            topics.append(parse_topic(raw, where=where))
        except DataError as error:
            if not skip_bad:
                remedy = " (or pass --skip-bad to leave such lines out)"
                raise DataError(f"{error}{remedy}") from error
            reason = str(error).removeprefix(f"{where}: ")
            rejected.append(Rejected(where, reason, {"line": str(raw)}))
    if not topics:
        raise DataError(f"{path}: holds no topic; give a list of {{question: …}}")
    if repeated := [name for name, n in Counter(one.id for one in topics).items() if n > 1]:
        raise DataError(f"{path}: the id {repeated[0]!r} is used twice; give every topic its own")
    return TopicList(topics, rejected, encoding)


def _yaml_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    rows = read_yaml(text, name)
    if not isinstance(rows, list):
        raise DataError(f"{name}: must be a list of topics, each with a question; correct it")
    for number, row in enumerate(rows, 1):
        # A text alone would be a line of JSON below.
        yield f"{name}:{number}", {"question": row} if isinstance(row, str) else row


def _json_rows(text: str, name: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield f"{name}:{number}", line


def _decoded(path: Path) -> tuple[str, str | None]:
    """Return the file's text, and its encoding where it is not UTF-8."""
    try:
        if has_no_end(path):
            raise DataError(f"{path}: is a pipe or device; give a file of topics")
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: larger than {_MOST_BYTES >> 20} MiB; split it")
        codec = detect_encoding(path)
        text = path.read_bytes().decode(codec)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path}: cannot be read ({reason}); give a file of topics") from error
    except UnicodeDecodeError as error:
        place = f"{error.encoding} is damaged at byte {error.start}"
        raise DataError(f"{path}: {place}; save the file as UTF-8") from error
    return text, None if codec.startswith("utf-8") else NAMES[codec]
