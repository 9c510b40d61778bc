"""The server's log: fixed words, numbers and request ids, never what anybody wrote."""

from __future__ import annotations

import logging

log = logging.getLogger("aegis.serve")


def log_to_stderr() -> None:
    """Write one line an event to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("aegis.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.level, logger.propagate = [handler], level, False


def log_exception(error: BaseException) -> None:
    """Log an error's type and place without its own words: they may hold the question's."""
    trace, place = error.__traceback__, "?"
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    log.error("%s at %s", type(error).__name__, place)
