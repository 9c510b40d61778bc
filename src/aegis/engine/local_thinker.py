"""A transformers model that decides and thinks, from an adapter or from a folded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis.engine.judge import Judge
from aegis.engine.protocol import ThinkingRequest
from aegis.engine.response_sampler import (
    ResponseRequest,
    ResponseSampler,
    SampledResponse,
    hold_gates,
)
from aegis.engine.verdict import CalibratedHead
from aegis.errors import ModelError
from aegis.model.adapted import Adapted
from aegis.model.adapter_folder import ADAPTER_CARD_FILE, load_adapter, read_card, require_base
from aegis.model.base import ModelFolder, resolve_base
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.tags import add_tags, known_tags
from aegis.model.token_head import folded_head
from aegis.protocol.thinking import Thinking


class LocalThinker(Judge):
    """An engine in the caller's thread, one call at a time.

    Args:
        model: a transformers causal language model, adapted or folded, that knows the tags.
        gates: of an adapted model; they turn once and not at every token.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        head: CalibratedHead,
        *,
        gates: Sequence[Any] = (),
        name: str = "",
    ) -> None:
        super().__init__(model, tokenizer, head, name=name)
        self.gates = gates
        self.sampler = ResponseSampler(model, tokenizer, known_tags(tokenizer))

    @classmethod
    def load(  # pyright: ignore[reportIncompatibleMethodOverride] - an adapter says how to load it
        cls, folder: Path, *, base_spec: str | None = None, trust_remote_code: bool = False
    ) -> LocalThinker:
        """Read an adapter folder (with its base) or a model folder.

        Args:
            base_spec: the adapter's base, if it is not to be found under the name that the adapter
                carries.
            trust_remote_code: run Python files that a model folder holds.

        Raises:
            ModelError: if the folder is neither, or was made without the tags.
        """
        if not folder.is_dir():
            raise ModelError(
                f"{folder}: no such folder; give an adapter or a model that `aegis run` made"
            )
        device, name = pick_device(), folder.resolve().name
        options: dict[str, Any] = {"dtype": fast_dtype(), "attention": quick_attention(device)}
        if (folder / ADAPTER_CARD_FILE).is_file():
            adapted, tokenizer = load_adapted(folder, base_spec=base_spec, **options)
            head, gates = CalibratedHead.load(folder, adapted.head), adapted.all_gates()
            return cls(adapted.base, tokenizer, head, gates=gates, name=name)
        source = ModelFolder(folder, trust_remote_code=trust_remote_code)
        width = source.read_config().get_text_config().hidden_size
        tokenizer = source.load_tokenizer()
        if not (own := folded_head(folder, tokenizer, width=width)):
            raise ModelError(
                f"{folder}: has no decision head; give an adapter or a model that `aegis run` made"
            )
        head = CalibratedHead.load(folder, own)
        known_tags(tokenizer)
        model: Any = source.load_model(**options)
        head = replace(head, head=head.head.to(device))
        return cls(model.to(device), tokenizer, head, name=name)

    def requests(self, requests: Sequence[ThinkingRequest]) -> list[ResponseRequest]:
        """Encode the prompts; DataError if one leaves no room for its response."""
        return [
            ResponseRequest(
                tuple(self.encoder.fitting_ids(one.prompt, room=one.sampling.limits.total)),
                one.decision,
                one.sampling,
            )
            for one in requests
        ]

    def think(self, requests: Sequence[ThinkingRequest]) -> list[Thinking | None]:
        """Write the responses as one batch, as `Engine` does."""
        written: list[Thinking | None] = [None] * len(requests)

        def keep(index: int, response: SampledResponse) -> None:
            written[index] = response.usable_thinking()

        with hold_gates(self.gates):
            self.sampler.each(
                self.requests(requests),
                on_response=keep,
                dropped=lambda index: requests[index].cancelled(),
            )
        return written


def load_adapted(
    folder: Path, *, base_spec: str | None = None, **options: Any
) -> tuple[Adapted, Any]:
    """Read an adapter folder with its base; return the adapted model and its tokenizer.

    Args:
        base_spec: the base, if it is not to be found under the name that the adapter carries.
        options: of `ModelFolder.load_model`.

    Raises:
        ModelError: if either cannot be loaded, or they do not belong together.
    """
    card = read_card(folder)
    trusted, quantization = card.settings.trust_remote_code, card.settings.quantization
    base = resolve_base(base_spec or card.base["spec"], trust_remote_code=trusted)
    require_base(card, base, folder=folder)
    tokenizer = base.load_tokenizer()
    loaded = base.load_model(**options, quantization=quantization)
    tags = add_tags(tokenizer, loaded, decisions=card.settings.head == "token")
    adapted = load_adapter(folder, loaded, card, tags=tags).to(pick_device())
    return adapted, tokenizer
