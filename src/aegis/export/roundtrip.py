"""What GGUF must not lose on the way: every tensor, and the ids of every text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from aegis.engine.llamacpp_files import Gguf
from aegis.errors import ModelError
from aegis.export.certificate import probe_texts
from aegis.model.heads import DECISION_HEAD_FILE, DecisionHead
from aegis.model.prompt import prompt_text
from aegis.protocol.thinking import TAGS


def stored_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the folder's `model*.safetensors`.

    Raises:
        ModelError: if one cannot be read, or there is none.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(model):
        with weights_in(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - not a dict
    if not shapes:
        raise ModelError(f"{model}: holds no model*.safetensors; fold the adapter again")
    return shapes


def weight_files(model: Path) -> list[Path]:
    """The folder's safetensors files."""
    return sorted(model.glob("model*.safetensors"))


@contextlib.contextmanager
def weights_in(path: Path) -> Iterator[Any]:
    """The open safetensors file; what goes wrong in reading it is told as such.

    Raises:
        ModelError: if it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fold the adapter again") from error


def check_tensors(gguf: Path, model: Path) -> None:
    """Every tensor of the model is in the GGUF file, with as many numbers.

    Raises:
        ModelError: if the converter left one out, or part of one.
    """
    from gguf import GGUFReader

    reader = GGUFReader(gguf)  # seconds, for a vocabulary of some size
    written = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
    architecture, there = gguf_names(reader)
    for name, shape in stored_shapes(model).items():
        count = math.prod(shape)
        if written.get(there(name) or "") != count:
            raise ModelError(
                f"{model}: {name} {list(shape)} would be lost, llama.cpp's converter for {architecture} writes "
                f"{written.get(there(name) or '', 'none')} of its {count} numbers; use the folder itself, or another base"
            )


def gguf_names(reader: Any) -> tuple[str, Callable[[str], str | None]]:
    """The architecture of a `GGUFReader`'s file, and what turns a tensor's name into the one there
    (None: it has none)."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    fields = reader.fields
    architecture = str(fields["general.architecture"].contents())
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(number, int(fields[f"{architecture}.block_count"].contents()))
    return architecture, lambda name: table.get_name(name, try_suffixes=(".weight", ".bias"))


def check_tokenizer(gguf: Path, model: Path, tokenizer: Any) -> dict[str, Any]:
    """llama.cpp reads texts as the model's tokenizer does: probe texts, the same as prompts, tags,
    special ids, template.

    Raises:
        ModelError: at the first difference.
    """
    loaded = Gguf(gguf)
    try:
        texts = [probe.text for probe in probe_texts()]
        for text in [*texts, "".join(TAGS)]:
            _same(loaded, tokenizer, text, special=True, where=model)
        system = (
            DecisionHead.load(model).system_prompt
            if (model / DECISION_HEAD_FILE).is_file()
            else None
        )
        for text in texts:
            prompt, special = prompt_text(tokenizer, text, system=system)
            _same(loaded, tokenizer, prompt, special=special, where=model)
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


def _same(gguf: Gguf, tokenizer: Any, text: str, *, special: bool, where: Path) -> None:
    ours, theirs = (
        tokenizer(text, add_special_tokens=special)["input_ids"],
        gguf.tokens(text, special=special),
    )
    if ours == theirs:
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    raise ModelError(
        f"{where}: llama.cpp reads a text otherwise than the tokenizer, from token {place} on: {theirs[place : place + 4]} "
        f"for {ours[place : place + 4]} in {text[:40]!r}…; if you gave --pre-tokenizer, try another name"
    )


def _check_tags(gguf: Gguf, tokenizer: Any, model: Path) -> int:
    """How many of the protocol's tags the tokenizer has; each is one token in GGUF too."""
    known = [tag for tag in TAGS if tag in tokenizer.get_added_vocab()]
    for tag in known:
        if (found := gguf.tokens(tag, special=False)) != [tokenizer.convert_tokens_to_ids(tag)]:
            raise ModelError(
                f"{model}: the tag {tag} is {len(found)} tokens in GGUF and one in the tokenizer; report it"
            )
    return len(known)


def _check_special_ids(gguf: Gguf, tokenizer: Any, model: Path) -> dict[str, int | None]:
    """Beginning, end and padding go by the same ids, those that the tokenizer has."""
    found = {
        "bos": gguf.vocabulary.token_bos(),
        "eos": gguf.vocabulary.token_eos(),
        "pad": gguf.vocabulary.token_pad(),
    }
    ours: dict[str, int | None] = {name: getattr(tokenizer, f"{name}_token_id") for name in found}
    for name, number in ours.items():
        if number is not None and found[name] != number:
            raise ModelError(
                f"{model}: {name} is token {found[name]} in GGUF and {number} in the tokenizer; report it"
            )
    return ours
