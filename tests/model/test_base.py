from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from aegis.errors import ModelError
from aegis.model.base import ModelFolder, resolve_base, save_tokenizer
from aegis.model.lm_head import vocabulary_logits
from aegis.model.prompt import PromptEncoder
from tests.conftest import byte_tokenizer
from tests.model.test_roles import IDS


def test_a_base_with_missing_tensors_is_told(base_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(base_folder, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj.weight .*missing"):
        ModelFolder(tmp_path / "base").load_model(dtype=torch.float32)


def test_a_changed_tokenizer_makes_another_base(save_base: Callable[..., Path]) -> None:
    folder = save_base("llama", seed=4)
    before = resolve_base(str(folder)).fingerprint
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert resolve_base(str(folder)).fingerprint != before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: "no/such/folder/here", "no such folder"),
        (lambda _: "missing.gguf", "no such file"),
        (lambda p: p / "empty", "no config.json"),
        (lambda p: p / "note.txt", "not a GGUF file"),
        (lambda p: p / "weightless", r"no model\*.safetensors"),
        (lambda p: p / "odd", "multiple of 8 for .* gates, got 36"),
        (lambda p: p / "strange", "not that of a known model"),
        (lambda p: p / "text.gguf", "cannot be converted"),
    ],
)
def test_bases_that_are_no_models_are_told(
    tmp_path: Path, monkeypatch: Any, make: Callable, message: str
) -> None:
    import json

    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "text.gguf").write_text("not a gguf")
    for name, config in {
        "empty": None,
        "weightless": {"model_type": "llama"},
        "odd": {"model_type": "llama", "hidden_size": 36, "num_attention_heads": 3},
        "strange": {"model_type": "abacus"},
    }.items():
        (tmp_path / name).mkdir()
        if config:
            (tmp_path / name / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        resolve_base(str(make(tmp_path)))


def test_a_cached_base_whose_manifest_cannot_be_read_is_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folder: Path
) -> None:
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    conversions = []

    def convert(_gguf: Path, staging: Path, *, spec: str) -> None:
        conversions.append(spec)
        shutil.copytree(base_folder, staging, dirs_exist_ok=True)

    monkeypatch.setattr("aegis.model.base._convert", convert)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    first = resolve_base(str(tmp_path / "x.gguf"))
    assert resolve_base(str(tmp_path / "x.gguf")).fingerprint == first.fingerprint
    assert len(conversions) == 1
    (first.folder / "manifest.json").write_text('{"version": 1}')
    assert resolve_base(str(tmp_path / "x.gguf")).fingerprint == first.fingerprint
    assert len(conversions) == 2


@pytest.mark.parametrize("name", ["hub/snapshots/abc/tiny.gguf", "hub/blobs/0a1b"])
def test_a_gguf_behind_a_link_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folder: Path, name: str
) -> None:
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "aegis.model.base._convert",
        lambda _, staging, **__: shutil.copytree(base_folder, staging, dirs_exist_ok=True),
    )
    link = tmp_path / "hub" / "snapshots" / "abc" / "tiny.gguf"
    link.parent.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    (tmp_path / "hub" / "blobs" / "0a1b").write_bytes(b"GGUF and so on")
    link.symlink_to("../../blobs/0a1b")
    base = resolve_base(name)
    assert base.spec == str(tmp_path / name)
    assert resolve_base(base.spec).fingerprint == base.fingerprint


def test_a_saved_tokenizer_does_not_tell_whether_the_machine_was_offline(
    tmp_path: Path, base_folder: Path
) -> None:
    tokenizer = ModelFolder(base_folder).load_tokenizer()
    texts = []
    for offline in (True, False):
        tokenizer.init_kwargs |= {"local_files_only": offline, "is_local": offline}
        save_tokenizer(tokenizer, tmp_path / str(offline))
        texts.append((tmp_path / str(offline) / "tokenizer_config.json").read_text())
    assert texts[0] == texts[1]
    assert ModelFolder(tmp_path / "True").load_tokenizer().get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("template", "read"),
    [
        ('{{ strftime_now("%d %b %Y") }}', "26 Jul 2024"),
        (
            "{% set d = strftime_now( '%Y-%m-%d' ) %}{{ d }}{{ strftime_now('%B') }}",
            "2024-07-26July",
        ),
        ("{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}no{% endif %}", "2024"),
        ({"tool_use": "tools", "default": "{{ strftime_now('%Y') }}"}, "2024"),
        ({"tool_use": "tools"}, "tools"),
    ],
)
def test_a_template_reads_the_same_every_day_and_stays_so(
    tmp_path: Path, base_folder: Path, template: Any, read: str
) -> None:
    tokenizer = ModelFolder(base_folder).load_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "base")
    loaded = ModelFolder(tmp_path / "base").load_tokenizer()
    save_tokenizer(loaded, tmp_path / "model")
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")  # as other programs read it
    for one in (loaded, plain):
        assert one.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == read
    assert "strftime" not in plain.chat_template


def test_the_hub_is_asked_for_what_looks_like_a_hub_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="the hub could not give it"):
        resolve_base("nobody-at-all/no-such-model")


@torch.no_grad()
def test_a_base_loads_and_tells_its_tokenizer(base_folder: Path) -> None:
    model, tokenizer = (
        ModelFolder(base_folder).load_model(dtype=torch.float32),
        ModelFolder(base_folder).load_tokenizer(),
    )
    hidden = model.get_decoder()(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(vocabulary_logits(model, hidden), model(input_ids=IDS).logits)
    assert tokenizer.pad_token_id is not None


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("system", [None, "Be {{ careful }}."])
def test_a_base_without_a_chat_template_gets_what_prompts_are_written_in(
    tmp_path: Path, begins: bool, system: str | None
) -> None:
    """The folded model keeps the tokenizer, so that others ask it as it was trained."""
    raw = byte_tokenizer()
    raw.chat_template = None
    if begins:
        raw.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.bos_token_id)]
        )
    raw.save_pretrained(tmp_path)
    loaded = ModelFolder(tmp_path).load_tokenizer()
    assert loaded.chat_template
    assert (PromptEncoder(loaded).ids("Hi")[0] == raw.bos_token_id) == begins
    for prompt in ("Hi", " 日本\n\n", "### Assistant:\n{{ x }}"):
        assert PromptEncoder(loaded, system).ids(prompt) == PromptEncoder(raw, system).ids(prompt)
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in turns]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.removeprefix("<s>" if begins else "") == (
        "### User:\na\n\n### Assistant:\nb<|end|>\n\n### User:\nc\n\n### Assistant:\n"
    )
