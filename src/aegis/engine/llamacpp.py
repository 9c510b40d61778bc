"""What export and server share of llama.cpp in this process, through cyllama."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_ERROR = 4  # ggml.h, GGML_LOG_LEVEL_ERROR


@contextlib.contextmanager
def error_lines() -> Iterator[list[str]]:
    """Keep llama.cpp's log off the screen; the list holds the error lines that it has written so
    far, empty ones not."""
    import cyllama.llama.llama_cpp as llama  # pyright: ignore[reportMissingImports]

    lines: list[str] = []
    llama.set_log_callback(
        lambda level, text: lines.append(text.strip()) if level == _ERROR and text.strip() else None
    )
    try:
        yield lines
    finally:
        llama.disable_logging()
