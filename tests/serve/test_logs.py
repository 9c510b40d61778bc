from __future__ import annotations

import pytest

from aegis.serve.logs import log_exception


def test_an_exception_is_logged_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("secretword")
    except ValueError as error:
        log_exception(error)
    assert "ValueError at test_logs.py:" in caplog.text
    assert "secretword" not in caplog.text
