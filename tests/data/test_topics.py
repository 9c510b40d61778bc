from __future__ import annotations

import pytest

from aegis.data.topics import parse_topic
from aegis.errors import DataError


def test_topics_that_would_write_harm_are_refused() -> None:
    with pytest.raises(DataError, match="must be ALLOW or ESCALATION, got REFUSE"):
        parse_topic({"question": "x", "decision": "REFUSE"}, where="t:1")


def test_a_topic_gets_its_defaults_and_knows_its_fields() -> None:
    topic = parse_topic({"question": "地震のときは？"}, where="t:1")
    assert (topic.id, topic.language, topic.domain) == ("t:1", "ja", "general")
    with pytest.raises(DataError, match="'level' is not a field; known fields: id, question"):
        parse_topic({"question": "x", "level": 3}, where="t:1")
