"""What must not be lost in GGUF: every tensor, and the ids of every text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aegis.engine.llamacpp import GgufModel
from aegis.errors import ModelError
from aegis.export.certificate import CERTIFICATE_FILE, probe_texts
from aegis.model.base import ModelFolder
from aegis.model.lm_head import lm_head_refusal
from aegis.model.prompt import PromptEncoder
from aegis.model.token_head import system_prompt_beside
from aegis.protocol.decisions import TOKENS
from aegis.protocol.thinking import TAGS
from aegis.storage.artifact import MANIFEST, Manifest, verify


def require_folder(model: Path) -> None:
    """Check that the folder is there.

    Raises:
        ModelError: if it is not.
    """
    if not model.is_dir():
        raise ModelError(
            f"{model}: no such folder; give a model that `aegis run` or `aegis fold` wrote"
        )


def require_model(model: Path) -> Manifest:
    """Return the manifest of a whole folded model, of which GGUF loses nothing that is known.

    Raises:
        ArtifactError: if a file is not as it was written.
        ModelError: if it is no folded model, or has a gate that the converter drops.
    """
    require_folder(model)
    if not (model / MANIFEST).is_file():
        raise ModelError(
            f"{model}: not written by `aegis run` or `aegis fold`, so nothing certifies it; "
            "fold an adapter"
        )
    manifest = verify(model)
    if missing := {"config.json", "tokenizer.json", CERTIFICATE_FILE} - manifest.files.keys():
        raise ModelError(
            f"{model}: holds {manifest.kind} without {sorted(missing)[0]}, no folded model; "
            "give another folder"
        )
    if "lm_head.weight" in stored_shapes(model):
        config = ModelFolder(model).read_config()
        if refusal := lm_head_refusal(config.model_type):
            raise ModelError(f"{model}: {refusal}; train again with model.gates.lm_head: auto")
    return manifest


def stored_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor in the folder's `model*.safetensors`.

    Raises:
        ModelError: if one cannot be read, or there is none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(model):
        with open_weights(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    if not shapes:
        raise ModelError(f"{model}: holds no model*.safetensors; fold the adapter again")
    return shapes


def weight_files(model: Path) -> list[Path]:
    """Return the folder's safetensors files."""
    return sorted(model.glob("model*.safetensors"))


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file.

    Raises:
        ModelError: if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fold the adapter again") from error


def check_tensors(gguf: Path, model: Path) -> None:
    """Check that every tensor of the model is in the GGUF file, with as many numbers.

    Raises:
        ModelError: if the converter left one out, or part of one.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)  # seconds, for a vocabulary of some size
    sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    architecture, name_in_file = gguf_names(reader)
    for name, shape in stored_shapes(model).items():
        size, written = math.prod(shape), sizes.get(name_in_file(name) or "")
        if written != size:
            raise ModelError(
                f"{model}: {name} {list(shape)} would be lost, llama.cpp's converter for "
                f"{architecture} writes {'none' if written is None else written} of its {size} "
                "numbers; use the folder itself, or another base"
            )


def gguf_names(reader: Any) -> tuple[str, Callable[[str], str | None]]:
    """Return the architecture of a `GGUFReader`'s file, and its names for the model's tensors."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    fields = reader.fields
    architecture = str(fields["general.architecture"].contents())
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, int(fields[f"{architecture}.block_count"].contents()))
    return architecture, lambda name: table.get_name(name, try_suffixes=(".weight", ".bias"))


def check_tokenizer(gguf: Path, model: Path, tokenizer: Any) -> dict[str, Any]:
    """Check that llama.cpp reads texts as the model's tokenizer does.

    Probe texts, the same as prompts, tags, special ids and the chat template are compared.

    Returns:
        The number of texts and of tags, and the ids of bos, eos and pad.

    Raises:
        ModelError: at the first difference.
    """
    loaded = GgufModel(gguf)
    try:
        texts = [probe.text for probe in probe_texts()]
        for text in [*texts, "".join(TAGS)]:
            _require_same_ids(loaded, tokenizer, text, special=True, model=model)
        encoder = PromptEncoder(tokenizer, system_prompt_beside(model))
        for text in texts:
            prompt, special = encoder.text(text)
            _require_same_ids(loaded, tokenizer, prompt, special=special, model=model)
        tags = _check_tags(loaded, tokenizer, model)
        special_ids = _check_special_ids(loaded, tokenizer, model)
        template = getattr(tokenizer, "chat_template", None)
        if template and loaded.metadata("tokenizer.chat_template") != template:
            raise ModelError(
                f"{model}: the chat template in GGUF is another than the tokenizer's; report it"
            )
    finally:
        loaded.close()
    return {"texts": len(texts), "tags": tags, **special_ids}


def _require_same_ids(
    gguf: GgufModel, tokenizer: Any, text: str, *, special: bool, model: Path
) -> None:
    ours = tokenizer(text, add_special_tokens=special)["input_ids"]
    theirs = gguf.tokens(text, special=special)
    if ours == theirs:
        return
    pairs = enumerate(zip(ours, theirs, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    raise ModelError(
        f"{model}: llama.cpp reads a text otherwise than the tokenizer, from token {start} on: "
        f"{theirs[start : start + 4]} for {ours[start : start + 4]} in {text[:40]!r}…; "
        "if you gave --pre-tokenizer, try another name"
    )


def _check_tags(gguf: GgufModel, tokenizer: Any, model: Path) -> int:
    """Return how many of the protocol's tags the tokenizer has; each is one token in GGUF too."""
    texts = (*TAGS, *TOKENS)
    known = sorted({*texts} & tokenizer.get_added_vocab().keys(), key=texts.index)
    for tag in known:
        ids = gguf.tokens(tag, special=False)
        if ids != [tokenizer.convert_tokens_to_ids(tag)]:
            raise ModelError(
                f"{model}: the tag {tag} is {len(ids)} tokens in GGUF and one in the tokenizer; "
                "report it"
            )
    return len(known)


def _check_special_ids(gguf: GgufModel, tokenizer: Any, model: Path) -> dict[str, int | None]:
    """Return the tokenizer's ids of beginning, end and padding, which GGUF has too."""
    ours: dict[str, int | None] = {}
    for name in ("bos", "eos", "pad"):
        theirs = gguf.special_id(name)
        ours[name] = getattr(tokenizer, f"{name}_token_id")
        if ours[name] is not None and theirs != ours[name]:
            raise ModelError(
                f"{model}: {name} is token {theirs} in GGUF and {ours[name]} in the tokenizer; "
                "report it"
            )
    return ours
