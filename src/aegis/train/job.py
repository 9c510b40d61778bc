"""What every step of training starts from: job, data, the base with its tags, the SFT model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aegis.config import Config
from aegis.data.records import Pair, Record, write_jsonl
from aegis.model.adapted import Adapted
from aegis.model.adapter_folder import AdapterCard, load_adapter, read_card, require_base
from aegis.model.base import Base
from aegis.model.calibration import fit
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.grad_checkpoint import checkpoint_layers
from aegis.model.lexical import LexicalHead
from aegis.model.offload import free_room, offload_layers
from aegis.model.prompt import PromptEncoder
from aegis.model.tags import Tags, add_tags
from aegis.train.examples import EncodingSettings, Example, encode_all
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.teacher import BaseAnswer

_HELD_OUT = "validation.jsonl"  # decision and its four logits for each validation record


@dataclass(frozen=True)
class TrainingJob:
    """What a step of training gets to work with.

    Args:
        folder: the artifact's staging folder.
    """

    folder: Path
    config: Config
    base: Base
    services: TrainServices

    @property
    def system(self) -> str | None:
        return self.config.model.system_prompt

    @property
    def max_length(self) -> int:
        return self.config.train.max_length

    def message(self, text: str) -> None:
        self.services.reporter.message(text)

    def loop(self, tokenizer: Any) -> LoopSettings:
        config = self.config
        return LoopSettings(tokenizer.pad_token_id, config.seed, config.train.clip_norm)

    def base_facts(self) -> dict[str, Any]:
        """Return what a card says of the base."""
        names = ("spec", "fingerprint", "model_type", "hidden_size")
        return {name: getattr(self.base, name) for name in names}


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on, and measures itself with.

    Args:
        pairs: for the reward model and DPO; SFT takes their chosen sides.
        held_out: pairs that the reward model is measured with.
        answers: the base's own to harmless prompts, which SFT keeps.
    """

    train: Sequence[Record]
    validation: Sequence[Record]
    pairs: Sequence[Pair] = ()
    held_out: Sequence[Pair] = ()
    answers: Sequence[BaseAnswer] = ()


@dataclass(frozen=True)
class SupervisedModel:
    """What SFT left, with a frozen copy of itself, in the precision in which sampling is fast."""

    folder: Path
    adapted: Adapted
    tokenizer: Any
    card: AdapterCard

    @classmethod
    def load(cls, job: TrainingJob, folder: Path) -> SupervisedModel:
        model, tokenizer, tags = load_tagged(job, dtype=fast_dtype())
        card = read_card(folder)
        require_base(card, job.base, folder=folder)
        torch.manual_seed(job.config.seed)
        adapted = place_model(job, load_adapter(folder, model, card, tags=tags))
        adapted.add_reference()
        return cls(folder, adapted, tokenizer, card)


def load_tagged(job: TrainingJob, *, dtype: torch.dtype) -> tuple[Any, Any, Tags]:
    """Load the base and its tokenizer, both knowing the tags."""
    tokenizer = job.base.load_tokenizer()
    model = job.base.load_model(
        dtype=dtype,
        attention=quick_attention(pick_device()),
        quantization=job.config.model.quantization,
    )
    decisions = job.config.model.head == "token"
    return model, tokenizer, add_tags(tokenizer, model, decisions=decisions)


def place_model(job: TrainingJob, adapted: Adapted) -> Adapted:
    """Move it to its device, or some layers to main memory, ready for the backward pass."""
    if job.config.model.offload:
        offload_layers(adapted.base, device=pick_device(), room=free_room())
    adapted.to(pick_device())
    if job.config.model.gradient_checkpointing:
        checkpoint_layers(adapted)
    return adapted


def fitting_records(job: TrainingJob, tokenizer: Any, records: Sequence[Record]) -> list[Record]:
    """Return the records whose prompts fit `train.max_length`."""
    encoder = PromptEncoder(tokenizer, job.system)
    return [record for record in records if len(encoder.ids(record.prompt)) <= job.max_length]


def prompts_only(job: TrainingJob, tokenizer: Any, records: Sequence[Record]) -> list[Example]:
    """Return the records without their responses, for validation."""
    everything = {"thinking_records": 0, "decision_records": None, "decision_tokens": None}
    settings = replace(EncodingSettings.of(job.config), **everything)
    return encode_all(tokenizer, records, [], settings)[0]


def refit_prompts(job: TrainingJob, tokenizer: Any, records: Sequence[Record]) -> list[Example]:
    """Return those prompts of the records, by seed, that the decision head is fitted on at last."""
    train = job.config.train
    some = {"decision_records": train.refit_records, "decision_tokens": train.refit_tokens}
    settings = replace(EncodingSettings.of(job.config), thinking_records=0, **some)
    return encode_all(tokenizer, records if train.refit_records else (), [], settings)[0]


def calibrate(
    job: TrainingJob,
    tokenizer: Any,
    records: Sequence[Record],
    lexical: LexicalHead | None,
    held_out: tuple[Any, Any],
) -> None:
    """Weigh decision head and lexical head on held-out logits and decisions; save the weights, and
    what they were weighed on."""
    prompts = [record.prompt for record in records]
    logits, decisions = held_out
    second = lexical.logits(prompts) if lexical else None
    spelled = PromptEncoder(tokenizer).spelled_in_bytes(prompts)
    fit(logits, second, spelled, decisions).save(job.folder)
    rows = zip(decisions.tolist(), logits.tolist(), strict=True)
    write_jsonl(job.folder / _HELD_OUT, [{"decision": truth, "logits": row} for truth, row in rows])
