"""What Ollama has to know beside the weights: the chat template in Go's language, parameters,
system text, licence.

Ollama shows whatever the model writes. The four private sections are text like any other to it, so
nothing here hides them or says that it does; AEGIS's own server is what keeps thinking private.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from aegis.engine.llamacpp_files import FTYPES
from aegis.errors import ModelError
from aegis.export.gguf import FOLDER
from aegis.export.licences import licence_of
from aegis.model.base import ModelFolder, context_length
from aegis.model.heads import DECISION_HEAD_FILE, DecisionHead
from aegis.model.prompt import prompt_text
from aegis.protocol.thinking import TAGS

# Sentinels that no template changes: they are put in for what people write, and looked for in what comes out.
_SYSTEM, _USER, _ANSWER, _AGAIN = (f"zq{name}qz" for name in ("sys", "ask", "say", "too"))
_MARKS = (("system", _SYSTEM), ("user", _USER), ("assistant", _ANSWER), ("user", _AGAIN))
_BY_HAND = "write a TEMPLATE by hand"
_MAX_CONTEXT = 8192


@dataclass(frozen=True)
class Modelfile:
    """One model for Ollama.

    Args:
        template: a Go template.
        parameters: Ollama's own names; a list stands for several values of one.
    """

    gguf: Path
    template: str
    parameters: dict[str, Any]
    system: str | None
    licence: str | None

    def text(self, *, source: str) -> str:
        """The file as `ollama create -f` reads it.

        Args:
            source: what stands after FROM.

        Raises:
            ModelError: if a text holds the three quotes that end one in a Modelfile.
        """
        lines = [f"FROM {source}", f"TEMPLATE {_quoted(self.template, 'the chat template')}"]
        for name, value in self.parameters.items():
            lines += [
                f"PARAMETER {name} {_value(one)}"
                for one in (value if isinstance(value, list) else [value])
            ]
        if self.system is not None:
            lines.append(f"SYSTEM {_quoted(self.system, 'the system text')}")
        if self.licence is not None:
            lines.append(f"LICENSE {_quoted(self.licence, 'the licence')}")
        return "\n".join(lines) + "\n"


def make_modelfile(model: Path, gguf: Path, *, temperature: float = 0.7) -> Modelfile:
    """Everything that Ollama needs, from a model folder or from the folder of its GGUF files.

    Raises:
        ModelError: if the chat template cannot be said in Go's language.
    """
    source = ModelFolder(model)
    tokenizer, context = source.load_tokenizer(), context_length(source.read_config())
    return Modelfile(
        gguf=gguf,
        template=go_template(tokenizer, where=model),
        parameters={
            "stop": _stops(tokenizer),
            "temperature": temperature,
            "num_ctx": min(context, _MAX_CONTEXT),
        },
        system=DecisionHead.load(model).system_prompt
        if (model / DECISION_HEAD_FILE).is_file()
        else None,
        licence=licence_of(model),
    )


def go_template(tokenizer: Any, *, where: Path) -> str:
    """The tokenizer's chat template for Ollama: the same text for a system text, a question, and
    turns after them.

    Found by what the template makes of marked texts, whatever it is written like.

    Raises:
        ModelError: if it does something else than put fixed text around each message.
    """
    if not getattr(tokenizer, "chat_template", None) or not _knows_system(tokenizer):
        return _single_turn(tokenizer, where)
    turns = [{"role": role, "content": mark} for role, mark in _MARKS]
    before, opened, asking = _cut(tokenizer, turns[:2], where)
    bare, _ = _cut(tokenizer, turns[1:2], where)
    closing = _render(tokenizer, turns[:2], where, more=False).rpartition(_USER)[2]
    _, _, answering, again, _ = _cut(tokenizer, turns, where)
    opening = _common_end(
        _common_end(opened, again), bare
    )  # however the text between two messages is shared out
    around = {
        "system": (before, opened.removesuffix(opening)),
        "user": (opening, closing),
        "assistant": (answering.removeprefix(closing), again.removesuffix(opening)),
    }
    default, prompting = bare.removesuffix(opening), asking.removeprefix(closing)
    for said in (turns[:2], turns[1:2], turns, turns[1:]):
        first = "" if said[0]["role"] == "system" else default
        text = "".join(
            around[turn["role"]][0] + turn["content"] + around[turn["role"]][1] for turn in said
        )
        if first + text + prompting != _render(tokenizer, said, where, more=True):
            raise ModelError(
                f"{where}: the chat template does more than put fixed text around messages; {_BY_HAND}"
            )
    start, default = (_without_beginning(tokenizer, text) for text in (before, default))
    around["system"] = (start, around["system"][1])
    branches = [
        f'if eq .Role "{role}" }}}}{_literal(one)}{{{{ .Content }}}}{_literal(two)}'
        for role, (one, two) in around.items()
    ]
    unless = "{{ if not .System }}" + _literal(default) + "{{ end }}" if default else ""
    return (
        unless
        + "{{ range .Messages }}{{ "
        + "{{ else ".join(branches)
        + "{{ end }}{{ end }}"
        + _literal(prompting)
    )


def _single_turn(tokenizer: Any, where: Path) -> str:
    """For a template that knows no system role, and for no template at all: what `prompt_text`
    makes of them."""
    whole, adds = prompt_text(tokenizer, _USER, system=_SYSTEM)
    bare, _ = prompt_text(tokenizer, _USER, system=None)
    before, _, rest = whole.partition(_SYSTEM)
    between, _, after = rest.partition(_USER)
    start, _, end = bare.partition(_USER)
    if not rest or end != after or not start.startswith(before):
        raise ModelError(
            f"{where}: the chat template writes a question otherwise with a system text; {_BY_HAND}"
        )
    begun = before if adds else _without_beginning(tokenizer, before)
    tail = between[: len(between) - len(start[len(before) :])]
    system = "{{ if .System }}{{ .System }}" + _literal(tail) + "{{ end }}"
    return (
        _literal(begun)
        + system
        + _literal(start[len(before) :])
        + "{{ .Prompt }}"
        + _literal(after)
        + "{{ .Response }}"
    )


def _knows_system(tokenizer: Any) -> bool:
    try:
        tokenizer.apply_chat_template(
            [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER}],
            tokenize=False,
        )
    except TemplateError:
        return False
    return True


def _render(tokenizer: Any, messages: list[dict[str, str]], where: Path, *, more: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=more, tokenize=False)
    except TemplateError as error:
        raise ModelError(
            f"{where}: the chat template cannot write a conversation ({error}); {_BY_HAND}"
        ) from error


def _cut(tokenizer: Any, messages: list[dict[str, str]], where: Path) -> list[str]:
    """What the template writes around the marked texts: one piece more than there are messages."""
    text, marks = (
        _render(tokenizer, messages, where, more=True),
        [message["content"] for message in messages],
    )
    if re.findall("|".join(marks), text) != marks:
        raise ModelError(
            f"{where}: the chat template repeats, drops or moves a message; {_BY_HAND}"
        )
    return re.split("|".join(marks), text)


def _common_end(one: str, two: str) -> str:
    count = 0
    while count < min(len(one), len(two)) and one[-1 - count] == two[-1 - count]:
        count += 1
    return one[len(one) - count :]


def _without_beginning(tokenizer: Any, text: str) -> str:
    """Without the token that Ollama puts first itself, where the tokenizer says so."""
    first = tokenizer("x")["input_ids"][:1]
    return text.removeprefix(tokenizer.bos_token) if first == [tokenizer.bos_token_id] else text


def _stops(tokenizer: Any) -> list[str]:
    """What ends a response: the end token, and the end of the public answer."""
    known = tokenizer.get_added_vocab()
    return [
        text for text in dict.fromkeys((tokenizer.eos_token, TAGS[-1])) if text and text in known
    ]


def _literal(text: str) -> str:
    """Fixed text in a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str, what: str) -> str:
    if '"""' in text:
        raise ModelError(
            f'{what} holds """, which ends a text in a Modelfile; create the model through the API instead'
        )
    return f'"""{text}"""'


def _value(value: Any) -> str:
    return '"' + value.replace('"', '\\"') + '"' if isinstance(value, str) else f"{value}"


def pick_gguf(folder: Path, kind: str) -> Path:
    """The folder's GGUF file of a type, in the folder or in its `gguf`.

    Raises:
        ModelError: if it is not there; says which are.
    """
    found = [*sorted(folder.glob("*.gguf")), *sorted((folder / FOLDER).glob("*.gguf"))]
    for path in found:
        if path.stem.lower().endswith(f"-{kind.lower()}"):
            return path
    there = ", ".join(path.stem.rpartition("-")[2] for path in found) or "none"
    known = kind if kind in FTYPES else "Q4_K_M"
    raise ModelError(
        f"{folder}: holds no GGUF file of type {kind} (found: {there}); run: aegis export gguf {folder} --types {known}"
    )
