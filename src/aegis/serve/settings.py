"""The settings of `aegis serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from aegis.config.settings import AtLeastOne, Count, Positive, Settings
from aegis.protocol.fixed_texts import Country

MOST_FINAL_TOKENS = 1024  # of one answer; who asks for more gets so many


class ServeSettings(Settings):
    """What a server serves, to whom, and within which limits."""

    model: Path = Path("runs/latest/model")
    """A model or adapter folder that `aegis run` wrote, or a .gguf file."""
    engine: str | None = None
    """hf or gguf; None: gguf for a .gguf file, hf for a folder."""
    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback one needs `tokens`."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """TCP port to listen on."""
    tokens: Path | None = None
    """File of bearer tokens; None lets in everybody on this machine."""
    model_name: Annotated[str, Field(min_length=1, max_length=200)] = "aegis"
    """What clients name the model by; the session that made it stands beside it."""
    base: str | None = None
    """An adapter's base, if it has moved."""
    audit: Path | None = None
    """The audit log; None: audit/ beside the model."""
    keys: Path | None = None
    """The audit log's keys; None: the folder beside the log, made at the first start."""
    cases: Path | None = None
    """The escalations; None: escalations.db beside the model."""
    section_tokens: AtLeastOne = 48
    """Tokens a private section; more think longer, and take longer."""
    final_tokens: Annotated[int, Field(ge=1, le=MOST_FINAL_TOKENS)] = 160
    """Tokens of an answer whose request names no limit."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """Of requests that name none; 0 takes the most probable token, which a small model is right
    with most often."""
    seed: Count | None = None
    """Of requests that bring none; None draws one each time."""
    batch: Annotated[int, Field(ge=1, le=256)] = 16
    """Answers sampled at once; more take more memory."""
    places: AtLeastOne = 64
    """Requests answered or waiting at once; more get 429."""
    rate: Count = 120
    """Requests a minute for each token; 0 for any number."""
    body_bytes: Annotated[int, Field(ge=1024)] = 1 << 18
    """Bytes of the largest body; a larger one gets 413."""
    body_s: Positive = 10
    """Seconds within which a body must arrive, or get 408."""
    answer_s: Annotated[float, Field(gt=0)] = 120
    """Seconds after which there is no answer, but status 504; inf for never."""
    grace_s: Annotated[float, Field(ge=0)] = 20
    """Seconds that answers may take once a stop was asked for."""
    keep_alive_s: Positive = 5
    """Seconds between signs of life in a stream that has no answer yet."""
    country: Country | None = None
    """Whose help lines somebody in crisis is told: JP, US, UK or international; None: Japan's in
    Japanese, else where to find one's own."""
    canary: bool = True
    """Put a random mark into the private context; no answer may hold it."""
    threads: Count = 0
    """CPU threads; 0 for one a core."""
