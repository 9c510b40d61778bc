"""The table at the end, and what the tests here share."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from tests.conftest import tagged_tokenizer
from tests.crash.report import REPORT, Report


@pytest.fixture(scope="session")
def report() -> Report:
    return REPORT


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tagged_tokenizer()


@pytest.fixture(scope="session")
def strace() -> str:
    """Where strace is."""
    return shutil.which("strace") or pytest.skip("strace is not installed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if REPORT.rows:
        terminalreporter.section("crash tests")
        for line in REPORT.lines():
            terminalreporter.write_line(line)
