"""Stage 1: the local model writes new samples, one section a question, all topics at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from aegis.data.records import Record, Rejected
from aegis.data.topics import Topic
from aegis.errors import DataError
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import SECTIONS, Thinking

Complete = Callable[[Sequence[str]], list[str]]
"""Instructions in, the model's answers out, in the same order."""

_INSTRUCTIONS = {
    "en": {
        "task": "Question: {question}\n"
        "In one short sentence, say what this question asks for. Do not answer it.",
        "safety": "Question: {question}\n"
        "In one short sentence, say who could be harmed if this is answered badly.",
        "policy": "Question: {question}\n"
        "The decision is {decision}. In one short sentence, explain why that is right.",
        "final": "Question: {question}\n"
        "In one short sentence, say how a helpful reply should be written.",
        "answer": "{question}\nAnswer in one or two short sentences.",
    },
    "ja": {
        "task": "質問：{question}\nこの質問が求めていることを、日本語の短い一文で書いてください。"
        "答えは書かないでください。",
        "safety": "質問：{question}\n誤った回答をした場合に誰が困るかを、"
        "日本語の短い一文で書いてください。",
        "policy": "質問：{question}\n判断は {decision} です。"
        "その理由を日本語の短い一文で書いてください。",
        "final": "質問：{question}\n親切な回答の書き方を、日本語の短い一文で書いてください。",
        "answer": "{question}\n日本語の短い文で答えてください。",
    },
}
_HANDOVER = {
    "en": "A person will take this from here; until then, please do not act on it.",
    "ja": "ここからは担当者が対応します。それまではそのままお待ちください。",
}


def generate(
    topics: Sequence[Topic],
    complete: Complete,
    *,
    on_section: Callable[[str], None] = lambda _: None,
) -> tuple[list[Record], list[Rejected]]:
    """Return one record a topic, and the topics whose sample broke the protocol, with the reason.

    The decision is the topic's own: the generator is not trusted to decide. An ESCALATION sample's
    public answer hands over to a person in fixed words.

    Args:
        on_section: called with each section's name before it is written.
    """
    bodies: dict[str, list[str]] = {}
    for section in _INSTRUCTIONS["en"]:
        on_section(section)
        instructions = [
            _INSTRUCTIONS[topic.language][section].format(
                question=topic.question, decision=topic.decision.name
            )
            for topic in topics
        ]
        bodies[section] = [tidy(text) for text in complete(instructions)]
    records: list[Record] = []
    rejected: list[Rejected] = []
    for index, topic in enumerate(topics):
        where = f"generated-{topic.id}"
        sections = {name: bodies[name][index] for name in SECTIONS}
        handed_over = topic.decision == Decision.ESCALATION
        answer = _HANDOVER[topic.language] if handed_over else bodies["answer"][index]
        try:
            thinking = Thinking.from_bodies(sections, answer, where=where)
        except DataError as error:
            reason = str(error).removeprefix(f"{where}: ")
            rejected.append(Rejected(where, reason, {"question": topic.question}))
            continue
        records.append(
            Record(
                id=where,
                prompt=topic.question,
                decision=topic.decision,
                language=topic.language,
                domain=topic.domain,
                source="local",
                thinking=thinking,
            )
        )
    return records, rejected


def tidy(text: str) -> str:
    """Return the text on one line, cut after the last finished sentence if there is one."""
    line = re.sub(r"\s+", " ", text).strip()
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)|[。！？]", line)]
    return line[: ends[-1]] if ends else line
