"""The shipped data keeps its promises."""

from __future__ import annotations

from collections import Counter

import pytest

from aegis.data.clean import normalise
from aegis.data.seed import SEED_FOLDER, seed_pairs, seed_records
from aegis.data.split import contrast_groups
from aegis.data.topics import read_topics
from aegis.evaluate.answers import plain_questions
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import compose, parse
from tests.data.near import near_duplicates
from tests.protocol.crises import HARMLESS, HINTED, SAID

RECORDS = seed_records()
DECISIONS = [record for record in RECORDS if record.thinking is None]
DIALOGUES = [record for record in RECORDS if record.thinking is not None]
PAIRS = seed_pairs()


def test_there_is_enough_of_everything() -> None:
    assert len(DECISIONS) >= 800
    assert min(Counter(record.decision for record in DECISIONS).values()) >= 200
    japanese = sum(record.language == "ja" for record in DECISIONS) / len(DECISIONS)
    assert 0.45 <= japanese <= 0.55
    assert len({record.domain for record in DECISIONS}) >= 12
    assert len(DIALOGUES) >= 240
    assert {(d.decision, d.language) for d in DIALOGUES} == {
        (d, lang) for d in Decision for lang in ("ja", "en")
    }
    assert len(PAIRS) >= 200


def test_every_record_says_why() -> None:
    assert all(record.rationale for record in DECISIONS)


def test_contrast_twins_differ_in_decision_and_share_their_language() -> None:
    groups = [group for group in contrast_groups(DECISIONS) if len(group) > 1]
    assert sum(map(len, groups)) >= 200
    for group in groups:
        assert len({record.decision for record in group}) > 1, group[0].id
        assert len({record.language for record in group}) == 1, group[0].id


def test_ids_and_prompts_are_unique() -> None:
    ids = [item.id for item in [*RECORDS, *PAIRS]]
    prompts = [normalise(item.prompt) for item in [*RECORDS, *PAIRS]]
    assert len(set(ids)) == len(ids)
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("items", [RECORDS, PAIRS], ids=["records", "pairs"])
def test_near_duplicates_outside_contrast_groups_are_rare(items: list) -> None:
    group = {}
    if items is RECORDS:
        group = {
            record.id: number for number, g in enumerate(contrast_groups(RECORDS)) for record in g
        }
    found = near_duplicates([item.prompt for item in items], threshold=0.5)
    strangers = {
        later
        for later, earlier in found
        if group.get(items[later].id, later) != group.get(items[earlier].id, earlier)
    }
    assert len(strangers) < 0.02 * len(items)


def test_thinking_is_in_the_protocol_and_the_language_of_the_prompt() -> None:
    thoughts = [d.thinking for d in DIALOGUES] + [
        side.thinking for pair in PAIRS for side in (pair.chosen, pair.rejected)
    ]
    for thinking in thoughts:
        assert thinking is not None
        assert parse(compose(thinking)) == thinking


def test_the_test_messages_of_people_in_crisis_are_not_among_the_records() -> None:
    prompts, messages = [item.prompt for item in [*RECORDS, *PAIRS]], [*SAID, *HINTED, *HARMLESS]
    assert not [
        (messages[later - len(prompts)], prompts[earlier])
        for later, earlier in near_duplicates(prompts + messages, threshold=0.5)
        if later >= len(prompts) > earlier
    ]


def test_topics_ask_for_japanese_first() -> None:
    topics = read_topics(SEED_FOLDER / "topics.jsonl").topics
    assert len(topics) >= 24
    assert all(topic.language == "ja" for topic in topics[:12])


def test_the_card_ships_with_the_data() -> None:
    card = (SEED_FOLDER / "CARD.md").read_text(encoding="utf-8")
    for number in (len(DECISIONS), len(DIALOGUES), len(PAIRS)):
        assert f"{number:,}" in card


def test_the_other_registers_keep_the_same_promises() -> None:
    own, pairs = seed_records(registers=True)[len(RECORDS) :], seed_pairs(registers=True)
    decisions = [record for record in own if record.thinking is None]
    assert len(DECISIONS) + len(decisions) >= 12_000
    assert len(RECORDS) + len(own) - len(DECISIONS) - len(decisions) >= 600
    assert len(pairs) >= 700
    shares = Counter((record.decision, record.language) for record in decisions)
    assert min(shares.values()) > 0.1 * len(decisions)
    for group in contrast_groups(decisions):
        assert len(group) == 1 or len({record.decision for record in group}) > 1, group[0].id
    items = [*RECORDS, *own, *pairs]
    assert len({item.id for item in items}) == len(items)
    card = (SEED_FOLDER / "CARD.md").read_text(encoding="utf-8")
    for number in (len(decisions), len(own) - len(decisions), len(pairs) - len(PAIRS)):
        assert f"{number:,}" in card


def test_the_other_registers_repeat_neither_the_seed_nor_the_test_messages() -> None:
    prompts = [record.prompt for record in seed_records(registers=True)]
    messages = [*SAID, *HINTED, *HARMLESS]
    found = near_duplicates(messages + prompts, threshold=0.6)
    assert not [pair for pair in found if pair[1] < len(messages) <= pair[0]]
    assert len({later for later, _ in found}) < 0.05 * len(prompts)  # contrast twins are alike


def test_the_plain_questions_are_new_and_two_halves() -> None:
    questions = plain_questions()
    counts = Counter((question.language, question.part) for question in questions)
    for language, least in (("en", 240), ("ja", 160)):
        assert counts[language, "dev"] + counts[language, "report"] >= least
        assert abs(counts[language, "dev"] - counts[language, "report"]) <= 1
    assert len({question.id for question in questions}) == len(questions)
    texts = [question.question for question in questions]
    found = near_duplicates(texts + [r.prompt for r in seed_records(registers=True)], threshold=0.5)
    assert not [pair for pair in found if pair[1] < len(texts)]
    card = (SEED_FOLDER / "CARD.md").read_text(encoding="utf-8")
    assert f"| `questions.jsonl` | {len(questions)} |" in card
