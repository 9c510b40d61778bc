from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from aegis.data.clean import normalise
from aegis.data.seed import seed_records
from aegis.data.topics import parse_topic, read_topics
from aegis.errors import BadInputError, DataError
from aegis.protocol.decisions import Decision

OURS = Path(__file__).parents[2] / "examples" / "topics_ja.yaml"


def test_topics_that_would_write_harm_are_refused() -> None:
    with pytest.raises(DataError, match="must be ALLOW or ESCALATION, got REFUSE"):
        parse_topic({"question": "x", "decision": "REFUSE"}, where="t:1")


def test_a_topic_gets_its_defaults_and_knows_its_fields() -> None:
    topic = parse_topic({"question": "地震のときは？"}, where="t:1")
    assert (topic.id, topic.language, topic.domain) == ("t:1", "ja", "general")
    assert parse_topic({"question": "x"}, where="/home/me/t:1").id == "t:1"
    with pytest.raises(DataError, match="'level' is not a field; known fields: id, question"):
        parse_topic({"question": "x", "level": 3}, where="t:1")


def test_our_list_has_japanese_first_and_every_question_once() -> None:
    topics = read_topics(OURS).topics
    languages = Counter(topic.language for topic in topics)
    assert (len(topics) >= 200, languages["ja"] >= 150, languages["en"] >= 50) == (True,) * 3
    assert all(topic.language == "ja" for topic in topics[:150])
    domains = {topic.domain for topic in topics if topic.language == "ja"}
    wanted = {"legal", "medical", "japanese_administration", "industry", "disaster", "finance"}
    assert wanted | {"culture"} <= domains
    assert {topic.decision for topic in topics} == {Decision.ALLOW, Decision.ESCALATION}
    prompts = [normalise(topic.question) for topic in topics]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & {normalise(record.prompt) for record in seed_records()}


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "UTF-16"),
        ("cp932", "Shift_JIS"),
        ("euc_jp", "EUC-JP"),
    ],
)
@pytest.mark.parametrize("name", ["t.yaml", "t.jsonl"])
def test_encodings_are_read_and_said(tmp_path: Path, name: str, codec: str, told: str) -> None:
    text = '{"question": "地震のときは、どこへ？"}\n'
    (tmp_path / name).write_bytes((f"- {text}" if name == "t.yaml" else text).encode(codec))
    read = read_topics(tmp_path / name)
    assert ([topic.question for topic in read.topics], read.encoding) == (
        ["地震のときは、どこへ？"],
        told,
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be a list of topics"),
        ("[]", "holds no topic"),
        ("question: x", "must be a list of topics"),
        ("- 3", "t.yaml:1: must have the fields id, question"),
        ("- {question: x}\n- {question: ''}", "t.yaml:2: question must be non-empty text"),
        ("- {id: a, question: x}\n- {id: a, question: y}", "the id 'a' is used twice"),
        ("- {question: x, question: y}", "'question' is given twice"),
    ],
)
def test_what_is_no_list_of_topics(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "t.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match=problem):
        read_topics(tmp_path / "t.yaml")


def test_bad_lines_can_be_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"question": "x"}\nno\n"text"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"t.jsonl:2: not valid JSON.*or pass --skip-bad"):
        read_topics(path)
    read = read_topics(path, skip_bad=True)
    assert (len(read.topics), [bad.where[-1] for bad in read.rejected]) == (1, ["2", "3"])
    path.write_bytes(b"\x80\xff" * 9)
    with pytest.raises(DataError, match="is damaged at byte 0; save the file as UTF-8"):
        read_topics(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_topics(tmp_path / "absent.yaml")
