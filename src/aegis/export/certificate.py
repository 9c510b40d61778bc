"""Evidence that two models are the same function: logits on fixed probe texts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis.errors import AegisError
from aegis.runs.reporter import bar
from aegis.storage.files import hash_file

CERTIFICATE_FILE = "certificate.json"
MAX_PROBE_TOKENS = 128
_ROWS = 16  # positions compared at a time: in float64 a whole probe of a large vocabulary takes gigabytes
PROBES = Path(__file__).with_name("probes.jsonl")


@dataclass(frozen=True)
class Probe:
    id: str
    language: str
    text: str


@dataclass(frozen=True)
class Certificate:
    """Live against folded, over every token position of every probe.

    `kl` is the mean KL(live ‖ folded) in nats a token; `top1_agreement` the share of positions with
    the same most probable token.
    """

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
        return {"compared": ["live", "folded"], **asdict(self)}


def probe_texts() -> list[Probe]:
    """The fixed probe texts that ship with AEGIS, half Japanese, half English."""
    lines = PROBES.read_text(encoding="utf-8").splitlines()
    return [Probe(**json.loads(line)) for line in lines if line.strip()]


@torch.inference_mode()
def probe_logits(model: Any, tokenizer: Any, probes: Sequence[Probe]) -> Iterator[Tensor]:
    """Yield one (tokens, vocabulary) float32 tensor a probe, cut to MAX_PROBE_TOKENS; one at a
    time, so no padding enters."""
    with bar("probing", len(probes)) as advance:
        for probe in probes:
            ids = tokenizer(probe.text, return_tensors="pt")["input_ids"][:, :MAX_PROBE_TOKENS]
            yield model(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()
            advance()


def record(folder: Path, logits: Iterable[Tensor]) -> list[Path]:
    """Put the logits on disk, one file a probe: a large vocabulary would fill the memory."""
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
    found = measure(pairs, remedy=f"not finite in {dtype}; use export.dtype: float32")
    languages = [probe.language for probe in probes]
    return Certificate(
        dtype=dtype,
        probes=len(probes),
        languages={name: languages.count(name) for name in sorted(set(languages))},
        positions=found.positions,
        max_abs_logit_difference=found.max_abs_logit_difference,
        kl=found.kl,
        max_kl=found.max_kl,
        top1_agreement=found.top1_agreement,
        probes_sha256=hash_file(PROBES),
    )


@dataclass(frozen=True)
class Agreement:
    """How far one model's logits are from another's. KL divergences in nats a token, from the first
    to the second."""

    positions: int
    max_abs_logit_difference: float
    kl: float
    max_kl: float
    top1_agreement: float


def measure(pairs: Iterable[tuple[Tensor, Tensor]], *, remedy: str) -> Agreement:
    """Compare pairs of (tokens, vocabulary) float32 logits.

    Args:
        remedy: ends the sentence "the model gives logits that are …".

    Raises:
        AegisError: if a logit is not finite.
    """
    difference, agreed, positions, kl_sum, kl_max = 0.0, 0, 0, 0.0, 0.0
    for one, two in (
        rows for pair in pairs for rows in zip(*(side.split(_ROWS) for side in pair), strict=True)
    ):
        if not (one.isfinite().all() and two.isfinite().all()):
            raise AegisError(f"the model gives logits that are {remedy}")
        difference = max(difference, float((one - two).abs().max()))
        agreed += int((one.argmax(-1) == two.argmax(-1)).sum())
        positions += len(one)
        log_p, log_q = one.double().log_softmax(-1), two.double().log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
        kl_sum, kl_max = kl_sum + float(kl.sum()), max(kl_max, float(kl.max()))
    return Agreement(positions, difference, kl_sum / positions, kl_max, agreed / positions)
