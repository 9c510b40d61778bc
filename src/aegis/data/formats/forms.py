"""Recognise how others write training data, and turn a row into ours.

Instruction data (`instruction`, `input`, `output`), chats (`messages`), ShareGPT (`conversations`),
and prompt with answer under the names that are common.
"""

from __future__ import annotations

from typing import Any

from aegis.errors import DataError
from aegis.protocol.thinking import looks_like_a_tag, parse

_PROMPTS = ("prompt", "instruction", "question", "query")
_RESPONSES = ("response", "output", "completion", "answer")
_TEXTS = ("text", "content")
_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "developer": "system",
}


_LANGUAGES = {"english": "en", "eng": "en", "japanese": "ja", "jpn": "ja"}


def recognised(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the row with the names of a record, a pair or a plain text.

    An answer that is written in the protocol becomes `thinking` and `final`; any other stays
    `response`, and a row without a decision becomes a plain text.

    Raises:
        DataError: if the row is recognised and broken, or holds neither a prompt nor a text.
    """
    row = dict(raw)
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    if isinstance(language := row.get("language"), str):
        row["language"] = _LANGUAGES.get(language.lower(), language)
    for name in ("messages", "conversations"):
        if isinstance(row.get(name), list):
            return _finished(row | _from_chat(row.pop(name), f"{where}: {name}"), where)
    for name in _PROMPTS:
        if name in row:
            row["prompt"] = row.pop(name)
            break
    else:
        if text := next((name for name in _TEXTS if name in row), None):
            row["text"] = row.pop(text)
            return row
        raise DataError(
            f"{where}: holds no prompt, text, messages or conversations "
            f"(its fields: {', '.join(sorted(row))[:200] or 'none'}); rename the field"
        )
    given = row.pop("input", None) if "instruction" in raw else None
    if isinstance(given, str) and given.strip():
        row["prompt"] = f"{row['prompt']}\n\n{given}"
    elif given not in (None, ""):
        raise DataError(f"{where}: input must be text, got {type(given).__name__}; correct it")
    answers = (name for name in _RESPONSES if isinstance(row.get(name), str) and row[name].strip())
    if "thinking" not in row and (answer := next(answers, None)):
        row["response"] = row.pop(answer)
    return _finished(row, where)


def _from_chat(messages: list[Any], where: str) -> dict[str, Any]:
    """Return the prompt, what was said before it, and the answer.

    More than one turn becomes one prompt, each turn a paragraph that begins with who says it.
    """
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages):
        values = message if isinstance(message, dict) else {}
        role = _ROLES.get(str(values.get("role", values.get("from"))).lower())
        text = values.get("content", values.get("value"))
        if role is None or not isinstance(text, str):
            raise DataError(
                f"{where}[{number}] must have a role (user, assistant, system) and text; correct it"
            )
        turns.append((role, text))
    system = "\n\n".join(text for role, text in turns if role == "system")
    said = [turn for turn in turns if turn[0] != "system"]
    response = said.pop()[1] if said and said[-1][0] == "assistant" else None
    if not said or said[-1][0] != "user":
        raise DataError(f"{where}: holds no user's turn before the answer; correct it")
    names = {"user": "User", "assistant": "Assistant"}
    several = "\n\n".join(f"{names[role]}: {text.strip()}" for role, text in said)
    row = {"prompt": several if len(said) > 1 else said[0][1]}
    return (
        row | ({"system": system} if system else {}) | ({"response": response} if response else {})
    )


def _finished(row: dict[str, Any], where: str) -> dict[str, Any]:
    if "chosen" in row or "rejected" in row:
        return row
    response = row.get("response")
    if isinstance(response, str) and "thinking" not in row and looks_like_a_tag(response):
        try:
            row |= parse(response.strip()).to_record()
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        del row["response"]
    if "decision" not in row and "thinking" not in row:
        if "text" in row:
            row["given_text"] = row.pop("text")
        row["text"] = row.pop("prompt")
    return row
