"""Fold LoRA and gates into a standard Hugging Face folder that plain transformers loads."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aegis import __version__
from aegis.config import ExportSettings
from aegis.errors import AegisError, ModelError
from aegis.export.certificate import (
    CERTIFICATE_FILE,
    MAX_PROBE_TOKENS,
    Certificate,
    DecisionAgreement,
    compare,
    probe_decisions,
    probe_logits,
    probe_texts,
    record,
)
from aegis.export.licences import licence_of_base, terms_files
from aegis.model.adapted import Adapted
from aegis.model.adapter_folder import AdapterCard, load_adapter, read_card, require_base
from aegis.model.base import Base, resolve_base, save_tokenizer
from aegis.model.calibration import CALIBRATION_FILE
from aegis.model.heads import DECISION_HEAD_FILE
from aegis.model.lexical import LEXICAL_HEAD_FILE
from aegis.model.lm_head import lm_head_refusal
from aegis.model.prompt import set_default_system
from aegis.model.quantize import count, dequantised, require_package
from aegis.model.tags import add_tags, end_at_tags
from aegis.model.token_head import METADATA_FILE, TokenHead
from aegis.protocol.decisions import TOKENS
from aegis.so8 import fold
from aegis.storage.artifact import read_manifest
from aegis.storage.files import require_space, to_json

# What the certificate's live model computes with. LLM.int8() rounds activations too, each by the
# largest of its batch, so that no weights are the same function; what is certified is the fold onto
# the weights that its codes stand for.
LIVE_MODEL = {"none": "base", "nf4": "quantised base", "int8": "dequantised base"}


@dataclass(frozen=True)
class Folding:
    """An adapter and its base, both checked and neither loaded."""

    adapter: Path
    card: AdapterCard
    base: Base

    @property
    def decides_by_tokens(self) -> bool:
        return self.card.settings.head == "token"


def prepare(adapter: Path, *, base_spec: str | None = None) -> Folding:
    """Check everything that can be checked before weights are loaded.

    Args:
        base_spec: the base, if it is not to be found under the name that the adapter carries.

    Raises:
        AdapterError: if the folder is no adapter, or belongs to another base.
        ModelError: if the base is no model, or a gate could not be exported.
    """
    card = read_card(adapter)
    settings = card.settings
    require_package(settings.quantization)
    base = resolve_base(
        base_spec or card.base["spec"], trust_remote_code=settings.trust_remote_code
    )
    require_base(card, base, folder=adapter)
    if settings.gates.lm_head is True and (refusal := lm_head_refusal(base.model_type)):
        raise ModelError(f"{adapter}: {refusal}; train again with model.gates.lm_head: auto")
    return Folding(adapter, card, base)


def write_model(folding: Folding, staging: Path, settings: ExportSettings) -> Certificate:
    """Write the folded model, its certificate and its metadata into an artifact's staging folder.

    The live model (base, adapter and gates) answers the probe texts first, then the same weights
    are folded, cast to `settings.dtype`, saved, loaded back by plain transformers and asked again.
    An adapter that was trained on a quantised base is folded onto the weights that the codes stand
    for: onto the original ones it would be another model.

    Raises:
        AegisError: if the certificate breaks a limit that the settings set.
        DiskFullError: if there is no room.
    """
    quantization = folding.card.settings.quantization
    adapted, tokenizer = _live(folding, plain=quantization == "int8")
    dtype, probes = getattr(torch, settings.dtype), probe_texts()
    vocabulary = adapted.base.get_output_embeddings().weight.shape[0]
    logits_bytes = len(probes) * MAX_PROBE_TOKENS * vocabulary * 4
    weights = sum(map(count, adapted.base.parameters()))
    require_space(staging, weights * dtype.itemsize + logits_bytes)
    scratch = staging / ".probes"  # inside, so that what clears a cut staging folder clears it too
    scratch.mkdir()
    try:
        live = record(scratch, probe_logits(adapted.base, tokenizer, probes))
        head, decided = adapted.head, torch.empty(0)
        if isinstance(head, TokenHead):
            decided = probe_decisions(adapted.base, tokenizer, head, probes)
        if quantization == "nf4":
            del adapted
            adapted, tokenizer = _live(folding, plain=True)
        folded = fold_in_place(adapted)
        if folding.decides_by_tokens:
            end_at_tags(folded, tokenizer)
        folded.to(dtype).save_pretrained(staging)
        system = folding.card.settings.system_prompt
        if folding.decides_by_tokens and system is not None:
            set_default_system(tokenizer, system)
        save_tokenizer(tokenizer, staging)
        _copy_sentencepiece(folding.base.folder / "tokenizer.model", tokenizer, staging)
        for name in (DECISION_HEAD_FILE, LEXICAL_HEAD_FILE, CALIBRATION_FILE):
            if (folding.adapter / name).exists():
                shutil.copyfile(folding.adapter / name, staging / name)
        for path in terms_files(folding.base.folder):
            shutil.copyfile(path, staging / path.name)
        del folded, adapted
        written = replace(folding.base, folder=staging)
        model = written.load_model(dtype=dtype)
        reloaded = probe_logits(model, tokenizer, probes)
        certificate = compare(live, reloaded, dtype=settings.dtype, probes=probes)
        facts: dict[str, Any] = {"live": LIVE_MODEL[quantization]}
        if isinstance(head, TokenHead):
            again = probe_decisions(model, tokenizer, head.folded(), probes)
            facts["decisions"] = asdict(DecisionAgreement.of(decided, again))
    finally:
        shutil.rmtree(scratch)
    certified = to_json({**certificate.to_json(), **facts})
    (staging / CERTIFICATE_FILE).write_text(certified, encoding="utf-8")
    (staging / METADATA_FILE).write_text(to_json(_metadata(folding, settings)), encoding="utf-8")
    _require_limits(certificate, settings)
    return certificate


@torch.no_grad()
def fold_in_place(adapted: Adapted) -> Any:
    """Merge LoRA and fold every gate in float64; return the plain transformers model.

    lm_head is untied if a gate sits on it.
    """
    gates = {name: adapted.gate(name) for name in adapted.gate_names}
    for name in gates:  # the hooks would turn what the folded weights turn already
        adapted.base.get_submodule(name)._forward_pre_hooks.clear()
    plain: Any = adapted.peft.merge_and_unload()
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    if head.weight is embedding.weight and any(plain.get_submodule(name) is head for name in gates):
        head.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
        plain.config.tie_word_embeddings = False
        plain.config.get_text_config().tie_word_embeddings = False
    if adapted.rows:
        embedding._forward_hooks.clear()
        head._forward_hooks.clear()
        adapted.rows.fold(plain)
    for name, gate in gates.items():
        site = plain.get_submodule(name)
        site.weight.copy_(fold(site.weight, gate))
    return plain


def _live(folding: Folding, *, plain: bool) -> tuple[Adapted, Any]:
    """Return the adapter on its base, in float32, and the tokenizer.

    Args:
        plain: a quantised base's codes are replaced by the weights that they stand for.
    """
    quantization = folding.card.settings.quantization
    model: Any = folding.base.load_model(dtype=torch.float32, quantization=quantization)
    if plain and quantization != "none":
        model = dequantised(model, device=torch.device("cpu"))
    tokenizer = folding.base.load_tokenizer()
    tags = add_tags(tokenizer, model, decisions=folding.decides_by_tokens)
    adapted = load_adapter(folding.adapter, model, folding.card, tags=tags)
    return adapted.to(model.device), tokenizer


def _copy_sentencepiece(source: Path, tokenizer: Any, folder: Path) -> None:
    """Write Llama's kind of tokenizer: the pieces with their scores, and what was added to them.

    Only there, not in tokenizer.json, does llama.cpp's converter find the scores by which its
    tokenizer merges; without them all are equal.
    """
    if not source.is_file() or not tokenizer.is_fast:  # a slow one saves its pieces itself
        return
    if not getattr(tokenizer.backend_tokenizer.model, "byte_fallback", False):
        return
    shutil.copyfile(source, folder / source.name)
    added = {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if number >= tokenizer.vocab_size or not token.special  # the pieces tell the special ones
    }
    (folder / "added_tokens.json").write_text(to_json(added), encoding="utf-8")


def _metadata(folding: Folding, settings: ExportSettings) -> dict[str, Any]:
    card, method = folding.card, folding.card.settings.quantization
    dequantised_base = [] if method == "none" else [f"dequantised_{method}_base"]
    decision = {"head": "token", "tokens": TOKENS, "system_prompt": card.settings.system_prompt}
    return {
        "aegis_version": __version__,
        "session_id": card.session_id,
        "features": [
            "quadruple_thinking",
            "four_decisions",
            f"so8_gates_{card.settings.gates.mode}",
            "lora_folded",
            *dequantised_base,
        ],
        "base": card.base,
        "licence": licence_of_base(folding.base.spec, folding.base.folder),
        "alpha": card.alpha,
        "model": card.model,
        "training": card.training,
        **({"decision": decision} if folding.decides_by_tokens else {}),
        "export": settings.model_dump(mode="json"),
        "quantization": {"method": method, "certified_against": LIVE_MODEL[method]},
        "adapter_sha256": read_manifest(folding.adapter).files,
    }


def _require_limits(certificate: Certificate, settings: ExportSettings) -> None:
    limit, difference = settings.max_logit_difference, certificate.max_abs_logit_difference
    if limit is not None and difference > limit:
        raise AegisError(
            f"export.max_logit_difference is {limit:g}, the folded model differs by "
            f"{difference:.2e}; set export.dtype: float32 or raise the limit"
        )
    if certificate.top1_agreement < settings.min_top1_agreement:
        raise AegisError(
            f"export.min_top1_agreement is {settings.min_top1_agreement:g}, the folded model "
            f"agrees on {certificate.top1_agreement:.4f} of the tokens; "
            "set export.dtype: float32 or lower the limit"
        )
