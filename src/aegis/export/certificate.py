"""Evidence that two models are the same function: logits on fixed probe texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis.errors import AegisError
from aegis.model.heads import DecisionHead
from aegis.model.prompt import PromptEncoder
from aegis.runs.reporter import bar
from aegis.storage.files import hash_file

CERTIFICATE_FILE = "certificate.json"
MAX_PROBE_TOKENS = 128
_ROWS = 16  # positions compared at a time: a whole probe in float64 may take gigabytes
PROBES = Path(__file__).with_name("probes.jsonl")


@dataclass(frozen=True)
class Probe:
    """A fixed text that both models read."""

    id: str
    language: str
    text: str


@dataclass(frozen=True)
class Agreement:
    """How far a second model's logits are from a first's, over all positions.

    `kl` is the mean KL(first ‖ second) in nats a token; `top1_agreement` the share of positions
    with the same most probable token.
    """

    positions: int
    max_abs_logit_difference: float
    kl: float
    max_kl: float
    top1_agreement: float


@dataclass(frozen=True)
class Certificate:
    """Live against folded model, over every token position of every probe; see `Agreement`."""

    dtype: str
    probes: int
    languages: dict[str, int]
    positions: int
    max_abs_logit_difference: float
    kl: float
    max_kl: float
    top1_agreement: float
    probes_sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return what certificate.json says."""
        return {"compared": ["live", "folded"], **asdict(self)}


@dataclass(frozen=True)
class DecisionAgreement:
    """How far a second model's decisions about prompts are from a first's."""

    prompts: int
    max_abs_probability_difference: float
    same_decision: float

    @classmethod
    def of(cls, first: Tensor, second: Tensor) -> DecisionAgreement:
        """Compare two (n, 4) logits of the decisions."""
        one, two = first.double().softmax(-1), second.double().softmax(-1)
        same = (one.argmax(-1) == two.argmax(-1)).double().mean()
        return cls(len(one), float((one - two).abs().max()), float(same))


def probe_texts() -> list[Probe]:
    """Return the probe texts that ship with AEGIS, half Japanese, half English."""
    lines = PROBES.read_text(encoding="utf-8").splitlines()
    return [Probe(**json.loads(line)) for line in lines if line.strip()]


@torch.inference_mode()
def probe_logits(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> Iterator[Tensor]:
    """Yield (tokens, vocabulary) float32 a probe, cut to MAX_PROBE_TOKENS, without padding."""
    with bar("probing", len(probes)) as advance:
        for probe in probes:
            ids = tokenizer(probe.text, return_tensors="pt")["input_ids"][:, :MAX_PROBE_TOKENS]
            yield model(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()
            advance()


@torch.inference_mode()
def probe_decisions(
    model: Any, tokenizer: Any, head: DecisionHead, probes: Sequence[Probe]
) -> Tensor:
    """(n, 4) logits of the decisions about the probe texts as prompts."""
    encoder, logits = PromptEncoder(tokenizer, head.system_prompt), list[Tensor]()
    with bar("deciding", len(probes)) as advance:
        for probe in probes:
            ids = torch.tensor([encoder.ids(probe.text)], device=model.device)
            hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            logits.append(head.logits(model, hidden, torch.ones_like(ids)).cpu())
            advance()
    return torch.cat(logits)


def record(folder: Path, logits: Iterable[Tensor]) -> list[Path]:
    """Write the logits, one file a probe: of a large vocabulary they would fill the memory."""
    paths = []
    for number, tensor in enumerate(logits):
        paths.append(folder / f"{number:04d}.safetensors")
        save_file({"logits": tensor.contiguous()}, paths[-1])
    return paths


def compare(
    live: Sequence[Path], other: Iterable[Tensor], *, dtype: str, probes: Sequence[Probe]
) -> Certificate:
    """Measure how far the second model's logits are from the first's recorded ones."""
    pairs = ((load_file(path)["logits"], two) for path, two in zip(live, other, strict=True))
    agreement = measure(pairs, remedy=f"not finite in {dtype}; use export.dtype: float32")
    languages = [probe.language for probe in probes]
    return Certificate(
        dtype=dtype,
        probes=len(probes),
        languages={name: languages.count(name) for name in sorted(set(languages))},
        **asdict(agreement),
        probes_sha256=hash_file(PROBES),
    )


def measure(pairs: Iterable[tuple[Tensor, Tensor]], *, remedy: str) -> Agreement:
    """Compare pairs of (tokens, vocabulary) float32 logits.

    Args:
        remedy: ends the sentence "the model gives logits that are …".

    Raises:
        AegisError: if a logit is not finite.
    """
    difference, agreed, positions, kl_sum, kl_max = 0.0, 0, 0, 0.0, 0.0
    blocks = (zip(*(side.split(_ROWS) for side in pair), strict=True) for pair in pairs)
    for one, two in itertools.chain.from_iterable(blocks):
        if not (one.isfinite().all() and two.isfinite().all()):
            raise AegisError(f"the model gives logits that are {remedy}")
        difference = max(difference, float((one - two).abs().max()))
        agreed += int((one.argmax(-1) == two.argmax(-1)).sum())
        positions += len(one)
        log_p, log_q = one.double().log_softmax(-1), two.double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
        kl_sum, kl_max = kl_sum + float(kl.sum()), max(kl_max, float(kl.max()))
    return Agreement(positions, difference, kl_sum / positions, kl_max, agreed / positions)
