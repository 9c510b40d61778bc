"""Make one GGUF file from a folded model: by llama.cpp's own converter, or by quantising."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from aegis.engine.llamacpp import quantise
from aegis.errors import AegisError, DiskFullError, ModelError
from aegis.export.gguf_checks import check_tensors
from aegis.storage.files import free_space

CONVERTED_TYPES = ("f32", "bf16", "f16")
_SPARE_BYTES = 16 << 20
_DISK_FULL = "the disk is full; free some room and run the same command again"
_ENVIRONMENT = {
    "TQDM_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONIOENCODING": "utf-8",
    "GGML_NO_BACKTRACE": "1",
}


def convert(model: Path, kind: str, scratch: Path, *, pre_tokenizer: str | None) -> Path:
    """Run the official converter, then llama.cpp on what it wrote; return the file.

    Raises:
        ModelError: if either refuses the model, or a tensor is left out.
    """
    path, log = scratch / f"{kind}.gguf", scratch / "converter.log"
    pre_tokenizer = pre_tokenizer or plain_pre_tokenizer(model)
    named = [pre_tokenizer] if pre_tokenizer else []
    for arguments in ([str(model.resolve()), str(path), kind, *named], [str(path)]):
        command = [sys.executable, "-P", "-m", "aegis.export.converter", *arguments]
        with log.open("w", encoding="utf-8") as stream:
            code = subprocess.run(
                command, stdout=stream, stderr=stream, env={**os.environ, **_ENVIRONMENT}
            ).returncode
        if code:
            text = log.read_text(encoding="utf-8", errors="replace")
            raise _or_disk_full(converter_error(model, text), scratch)
    check_tensors(path, model)
    return path


def quantise_file(
    source: Path,
    kind: str,
    scratch: Path,
    *,
    threads: int,
    importance: Mapping[str, Tensor] | None = None,
) -> Path:
    """Quantise an f16 file, weighing columns by their importance if given; return the new file."""
    path = scratch / f"{kind}.gguf"
    try:
        if importance:
            from aegis.export.importance import quantise_by_importance

            quantise_by_importance(source, path, importance, kind=kind, threads=threads)
        else:
            quantise(source, path, kind=kind, threads=threads)
    except AegisError as error:
        raise _or_disk_full(error, scratch) from error
    return path


def plain_pre_tokenizer(model: Path) -> str | None:
    """Return "gpt-2" where the model's pre-tokenizer is GPT-2's own, None otherwise.

    The converter tells pre-tokenizers apart by how they read one text, on which GPT-2's and
    SmolLM's agree.
    """
    try:
        content = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
        plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        is_bpe = content["model"]["type"] == "BPE"
        is_plain = is_bpe and plain.items() <= (content["pre_tokenizer"] or {}).items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{model}: tokenizer.json cannot be read ({error}); fold the adapter again"
        ) from error
    return "gpt-2" if is_plain and not content.get("normalizer") else None


def converter_error(model: Path, log: str) -> AegisError:
    """Return the error that the converter's log tells of."""
    if "No space left" in log:
        return DiskFullError(f"{model}: {_DISK_FULL}")
    if "pre-tokenizer was not recognized" in log:
        return ModelError(
            f"{model}: the converter does not know this tokenizer's pre-tokenizer; "
            "give llama.cpp's name for it with --pre-tokenizer (gpt-2, llama-bpe, qwen2 …): "
            "the export checks that it reads texts the same way"
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = (lines or ["no reason given"])[-1][:300]
    return ModelError(f"{model}: llama.cpp's converter refuses the model ({reason})")


def _or_disk_full(error: AegisError, scratch: Path) -> AegisError:
    """llama.cpp does not say why it could not write: a disk without room explains it."""
    if free_space(scratch) < _SPARE_BYTES:
        return DiskFullError(f"{scratch.parent}: {_DISK_FULL}")
    return error
