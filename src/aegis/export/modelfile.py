"""What Ollama has to know beside the weights: template, parameters, system text, licence.

Ollama shows whatever the model writes. The four private sections are text like any other to it, so
nothing here hides them or says that it does; AEGIS's own server is what keeps thinking private.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from aegis.engine.llamacpp import FTYPES
from aegis.errors import ModelError
from aegis.export.certificate import CERTIFICATE_FILE
from aegis.export.gguf import FOLDER
from aegis.export.licences import licence_of
from aegis.model.base import DAY, ModelFolder, context_length
from aegis.model.prompt import PromptEncoder
from aegis.model.token_head import system_prompt_beside
from aegis.protocol.decisions import TOKENS
from aegis.protocol.thinking import TAGS

# Sentinels that no template changes: put in for what people write, and searched in what comes out.
_SYSTEM, _USER, _ANSWER, _AGAIN = (f"zq{name}qz" for name in ("sys", "ask", "say", "too"))
_CONVERSATION = [
    {"role": "system", "content": _SYSTEM},
    {"role": "user", "content": _USER},
    {"role": "assistant", "content": _ANSWER},
    {"role": "user", "content": _AGAIN},
]
# In place of a template's own text, which names the base and its maker.
SYSTEM_TEXT = "You are a helpful AI assistant."
_DEFAULT_SYSTEM = re.compile(r"\{\{ if not \.System \}\}(.*?)\{\{ end \}\}", re.DOTALL)
_BY_HAND = "write a TEMPLATE by hand"
_MAX_CONTEXT = 8192

Messages = list[dict[str, str]]


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
        """Return the file as `ollama create -f` reads it.

        Args:
            source: what stands after FROM.

        Raises:
            ModelError: if a text holds the three quotes that end one in a Modelfile.
        """
        lines = [f"FROM {source}", f"TEMPLATE {_quoted(self.template, 'the chat template')}"]
        for name, value in self.parameters.items():
            values = value if isinstance(value, list) else [value]
            lines += [f"PARAMETER {name} {_parameter(item)}" for item in values]
        if self.system is not None:
            lines.append(f"SYSTEM {_quoted(self.system, 'the system text')}")
        if self.licence is not None:
            lines.append(f"LICENSE {_quoted(self.licence, 'the licence')}")
        return "\n".join(lines) + "\n"


def make_modelfile(model: Path, gguf: Path, *, temperature: float = 0.7) -> Modelfile:
    """Collect what Ollama needs from a model folder, or from the folder of its GGUF files.

    Raises:
        ModelError: if the chat template cannot be said in Go's language.
    """
    source = ModelFolder(model)
    tokenizer, context = source.load_tokenizer(), context_length(source.read_config())
    added = tokenizer.get_added_vocab()
    template, system = go_template(tokenizer, where=model), system_prompt_beside(model)
    default = _DEFAULT_SYSTEM.match(template)
    if default and default[1].strip() not in (tokenizer.bos_token or ""):
        template, system = template[default.end() :], system or SYSTEM_TEXT
    if (day := DAY.strftime("%d %b %Y")) in template:  # a value that a reader finds and can change
        template = f'{{{{- $day := "{day}" }}}}' + template.replace(day, "{{ $day }}")
    # Where the model decides by tokens, no tag belongs to an answer; elsewhere it may think first.
    tags = TAGS if TOKENS[0] in added else TAGS[-1:]
    ends = dict.fromkeys((tokenizer.eos_token, *tags))
    return Modelfile(
        gguf=gguf,
        template=template,
        parameters={
            "stop": [text for text in ends if text and text in added],
            "temperature": temperature,
            "num_ctx": min(context, _MAX_CONTEXT),
        },
        system=system,
        licence=_licence_text(model),
    )


def _licence_text(model: Path) -> str | None:
    licence = licence_of(model)
    return "\n".join(dict.fromkeys(licence.values())) or None


def pick_gguf(folder: Path, kind: str | None) -> Path:
    """Return the GGUF file of a type, in the folder or in its `gguf`; by default the smallest that
    is within its certificate's limit.

    Raises:
        ModelError: if it is not there; says which are.
    """
    files = [*sorted(folder.glob("*.gguf")), *sorted((folder / FOLDER).glob("*.gguf"))]
    if kind is None and files:
        entries = certified_types(folder)
        within = {entry["file"] for entry in entries.values() if entry["within"]}
        usable = [path for path in files if path.name in within or not entries]
        if not usable:
            raise ModelError(
                f"{folder}: no type is within its certificate's limit; name one with --type, or run"
                f": aegis export gguf {folder} --types Q8_0"
            )
        return min(usable, key=lambda path: path.stat().st_size)
    kind = kind or "Q4_K_M"
    for path in files:
        if path.stem.lower().endswith(f"-{kind.lower()}"):
            return path
    types = ", ".join(path.stem.rpartition("-")[2] for path in files) or "none"
    known = kind if kind in FTYPES else "Q4_K_M"
    raise ModelError(
        f"{folder}: holds no GGUF file of type {kind} (found: {types}); "
        f"run: aegis export gguf {folder} --types {known}"
    )


def certified_types(folder: Path) -> dict[str, Any]:
    """Return the certificate's entries of GGUF types; none where there is no certificate."""
    try:
        certificate = json.loads((folder / CERTIFICATE_FILE).read_text(encoding="utf-8"))
        return dict(certificate.get("gguf", {}))
    except (OSError, ValueError, AttributeError):
        return {}


def go_template(tokenizer: Any, *, where: Path) -> str:
    """Return the tokenizer's chat template in Go's language: the same text for the same turns.

    Derived from what the template makes of sentinels, whatever it is written like.

    Raises:
        ModelError: if it does something else than put fixed text around each message.
    """
    if not getattr(tokenizer, "chat_template", None) or not _knows_system(tokenizer):
        return _single_turn(tokenizer, where)
    asked = _CONVERSATION[:2]
    before, opened, asking = _around(tokenizer, asked, where)
    bare, _ = _around(tokenizer, asked[1:], where)
    closing = _render(tokenizer, asked, where, generate=False).rpartition(_USER)[2]
    _, _, answering, again, _ = _around(tokenizer, _CONVERSATION, where)
    # Text between two messages may belong to either: what opens a question is common to all three.
    opening = _common_end(_common_end(opened, again), bare)
    around = {
        "system": (before, opened.removesuffix(opening)),
        "user": (opening, closing),
        "assistant": (answering.removeprefix(closing), again.removesuffix(opening)),
    }
    default, prompting = bare.removesuffix(opening), asking.removeprefix(closing)
    for turns in (asked, asked[1:], _CONVERSATION, _CONVERSATION[1:]):
        text = "" if turns[0]["role"] == "system" else default
        for turn in turns:
            text += turn["content"].join(around[turn["role"]])
        if text + prompting != _render(tokenizer, turns, where, generate=True):
            raise ModelError(
                f"{where}: the chat template does more than put fixed text around messages; "
                f"{_BY_HAND}"
            )
    start, default = (_without_bos(tokenizer, text) for text in (before, default))
    around["system"] = (start, around["system"][1])
    branches = [
        f'if eq .Role "{role}" }}}}{_literal(left)}{{{{ .Content }}}}{_literal(right)}'
        for role, (left, right) in around.items()
    ]
    turns = "{{ range .Messages }}{{ " + "{{ else ".join(branches) + "{{ end }}{{ end }}"
    unless = "{{ if not .System }}" + _literal(default) + "{{ end }}" if default else ""
    return unless + turns + _literal(prompting)


def _single_turn(tokenizer: Any, where: Path) -> str:
    """Return what a `PromptEncoder` makes of a template without a system role, or of none."""
    with_system, adds_bos = PromptEncoder(tokenizer, _SYSTEM).text(_USER)
    without_system, _ = PromptEncoder(tokenizer).text(_USER)
    before, _, rest = with_system.partition(_SYSTEM)
    between, _, after = rest.partition(_USER)
    start, _, end = without_system.partition(_USER)
    if not rest or end != after or not start.startswith(before):
        raise ModelError(
            f"{where}: the chat template writes a question otherwise with a system text; {_BY_HAND}"
        )
    begin = before if adds_bos else _without_bos(tokenizer, before)
    opening = start[len(before) :]
    system_end = between[: len(between) - len(opening)]
    system = "{{ if .System }}{{ .System }}" + _literal(system_end) + "{{ end }}"
    question = _literal(opening) + "{{ .Prompt }}" + _literal(after)
    return _literal(begin) + system + question + "{{ .Response }}"


def _knows_system(tokenizer: Any) -> bool:
    try:
        tokenizer.apply_chat_template(_CONVERSATION[:2], tokenize=False)
    except TemplateError:
        return False
    return True


def _render(tokenizer: Any, messages: Messages, where: Path, *, generate: bool) -> str:
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=generate, tokenize=False
        )
    except TemplateError as error:
        raise ModelError(
            f"{where}: the chat template cannot write a conversation ({error}); {_BY_HAND}"
        ) from error


def _around(tokenizer: Any, messages: Messages, where: Path) -> list[str]:
    """Return the template's text around the contents: a piece more than there are messages."""
    text = _render(tokenizer, messages, where, generate=True)
    contents = [message["content"] for message in messages]
    if re.findall("|".join(contents), text) != contents:
        raise ModelError(
            f"{where}: the chat template repeats, drops or moves a message; {_BY_HAND}"
        )
    return re.split("|".join(contents), text)


def _common_end(first: str, second: str) -> str:
    pairs = zip(reversed(first), reversed(second), strict=False)
    count = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return first[len(first) - count :]


def _without_bos(tokenizer: Any, text: str) -> str:
    """Drop the token that Ollama puts first itself, where the tokenizer says so."""
    first = tokenizer("x")["input_ids"][:1]
    return text.removeprefix(tokenizer.bos_token) if first == [tokenizer.bos_token_id] else text


def _literal(text: str) -> str:
    """Return fixed text for a Go template."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str, name: str) -> str:
    if '"""' in text:
        raise ModelError(
            f'{name} holds """, which ends a text in a Modelfile; '
            "create the model through the API instead"
        )
    return f'"""{text}"""'


def _parameter(value: Any) -> str:
    return '"' + value.replace('"', '\\"') + '"' if isinstance(value, str) else f"{value}"
