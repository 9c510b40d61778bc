from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aegis.errors import ModelError
from aegis.export import modelfile
from aegis.export.modelfile import go_template, make_modelfile
from aegis.model.prompt import PromptEncoder
from aegis.protocol.thinking import TAGS
from tests.conftest import TEMPLATE
from tests.export.conftest import merging_tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nDefault.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


LLAMA3 = (
    "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|{{ message.role }}|>\n\n{{ message.content | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)


NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% if message.role == 'user' %}[INST] {{ message.content }} [/INST]"
    "{% else %} {{ message.content }}</s>{% endif %}"
    "{% endfor %}"
)


BRACES = (
    "{% for message in messages %}{{ '{{' }}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


@pytest.mark.parametrize("template", [TEMPLATE, CHATML, LLAMA3, NO_SYSTEM, BRACES, None])
@pytest.mark.parametrize("system", ["You are AEGIS.\nBe brief. あ", None])
def test_the_go_template_writes_what_the_chat_template_writes(
    template: str | None, system: str | None
) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = template
    question = 'What is {{ "water" }}?\n水とは?'
    expected, _ = PromptEncoder(tokenizer, system).text(question)
    messages = [{"Role": "user", "Content": question}]
    if system:
        messages.insert(0, {"Role": "system", "Content": system})
    assert ollama_renders(go_template(tokenizer, where=Path("m")), messages) == expected


def test_a_templates_own_words_about_the_base_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = merging_tokenizer()
    source = SimpleNamespace(load_tokenizer=lambda: tokenizer, read_config=lambda: None)
    monkeypatch.setattr(modelfile, "ModelFolder", lambda _: source)
    monkeypatch.setattr(modelfile, "context_length", lambda _: 512)
    for template in (CHATML, TEMPLATE, LLAMA3):
        tokenizer.chat_template = template
        made = modelfile.make_modelfile(tmp_path, tmp_path / "m.gguf")
        assert "Default." not in made.text(source="m.gguf")
        assert made.system == (modelfile.SYSTEM_TEXT if template == CHATML else None)
        turns = [{"role": "user", "content": "hi"}]
        if made.system:
            turns.insert(0, {"role": "system", "content": made.system})
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        messages = [{key.title(): text for key, text in turn.items()} for turn in turns]
        assert ollama_renders(made.template, messages) == expected


@pytest.mark.parametrize("template", [TEMPLATE, CHATML, LLAMA3, BRACES])
def test_later_turns_agree_too(template: str) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = template
    turns = [
        ("system", "S"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "three"),
        ("assistant", "four"),
        ("user", "five"),
    ]
    for first in (0, 1):
        said = [{"role": role, "content": content} for role, content in turns[first:]]
        expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        messages = [{"Role": role, "Content": content} for role, content in turns[first:]]
        assert ollama_renders(go_template(tokenizer, where=Path("m")), messages) == expected


def test_what_ollama_puts_first_itself_is_left_out() -> None:
    from tokenizers import processors

    tokenizer = merging_tokenizer()
    tokenizer.chat_template = LLAMA3
    with_start = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.backend_tokenizer.post_processor = with_start
    template = go_template(tokenizer, where=Path("m"))
    assert "<s>" not in template
    expected, _ = PromptEncoder(tokenizer, "S").text("hi")
    messages = [{"Role": "system", "Content": "S"}, {"Role": "user", "Content": "hi"}]
    assert "<s>" + ollama_renders(template, messages) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.content }}{{ message.content }}{% endfor %}",
        "{{ messages[-1].content }}",
        "{% for message in messages %}{{ loop.index }}{{ message.role }}{{ message.content }};"
        "{% endfor %}",
    ],
)
def test_a_template_that_does_more_is_refused(template: str) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match="write a TEMPLATE by hand"):
        go_template(tokenizer, where=Path("m"))


def test_the_default_system_text_of_weights_that_decide_becomes_ollamas(deciding: Path) -> None:
    made = make_modelfile(deciding, deciding / "model-f16.gguf")
    assert made.system == "Be careful."
    assert "careful" not in made.template
    assert made.parameters["stop"] == ["<|end|>", *TAGS]


def test_weights_beside_a_head_may_think_before_they_answer(folded: Path) -> None:
    assert make_modelfile(folded, folded / "m.gguf").parameters["stop"] == ["<|end|>", "</final>"]


def ollama_renders(template: str, messages: list[dict[str, str]]) -> str:
    """What Ollama makes of it (template.go, Execute): a template without .Messages gets the last
    system text and question."""
    system = "\n\n".join(message["Content"] for message in messages if message["Role"] == "system")
    if ".Messages" in template:
        return go(template, {"System": system, "Messages": messages})
    return go(
        template.partition("{{ .Response }}")[0],
        {"System": system, "Prompt": messages[-1]["Content"]},
    )


def go(template: str, values: dict[str, Any]) -> str:
    """Go's text/template as far as it is used here: fields, range, if, else if, else, not, eq, a
    quoted string."""
    pieces = re.split(r"(\{\{.*?\}\})", template, flags=re.DOTALL)
    text, rest = _block(pieces, values)
    assert not rest, rest
    return text


def _block(pieces: list[str], dot: Any, *, live: bool = True) -> tuple[str, list[str]]:
    """Text up to the {{ end }} or {{ else … }} of this block, and what follows from there on."""
    written = ""
    while pieces:
        piece, pieces = pieces[0], pieces[1:]
        if not piece.startswith("{{"):
            written += piece if live else ""
            continue
        words = piece[2:-2].strip()
        if words == "end" or words.startswith("else"):
            return written, [piece, *pieces]
        if words.startswith("range"):
            body, found = pieces, ""
            for item in dot[words.split(".")[1]] or [None]:
                found, pieces = _block(body, item, live=live and item is not None)
                written += found
            pieces = pieces[1:]
        elif words.startswith("if"):
            done = False
            condition = words.removeprefix("if").strip()
            while True:
                holds = live and not done and _holds(condition, dot)
                done = done or holds
                found, pieces = _block(pieces, dot, live=holds)
                written += found
                closing, pieces = pieces[0][2:-2].strip(), pieces[1:]
                if closing == "end":
                    break
                condition = (
                    closing.removeprefix("else").strip().removeprefix("if").strip() or "true"
                )
        elif live:
            written += json.loads(words) if words.startswith('"') else dot[words.removeprefix(".")]
    return written, []


def _holds(condition: str, dot: dict[str, Any]) -> bool:
    words = condition.split(maxsplit=2)
    if words[0] == "not":
        return not _holds(words[1], dot)
    if words[0] == "eq":
        return dot[words[1][1:]] == json.loads(words[2])
    return words[0] == "true" or bool(dot[words[0][1:]])
