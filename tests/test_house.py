"""Imports run one way, inside functions too."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "aegis"
LAYERS = [
    {"errors", "so8"},
    {"protocol", "config", "storage"},
    {"runs", "audit", "model"},
    {"engine", "data"},
    {"train", "evaluate", "export", "serve"},
    {"pipeline", "compat"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# tune sits beside train; `aegis` itself holds only the version.


def imported(path: Path) -> set[str]:
    """The parts of aegis that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("aegis.")}


def test_imports_run_one_way() -> None:
    wrong = []
    for path in SOURCE.rglob("*.py"):
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if part == "__init__":
            continue
        for other in imported(path) - {part}:
            if RANK[other] > RANK[part] or (RANK[other] == RANK[part] and RANK[part] == 4):
                wrong.append(f"{path.relative_to(SOURCE)} imports aegis.{other}")
    assert not wrong


def test_the_mathematics_stands_alone() -> None:
    assert all(imported(path) <= {"so8"} for path in (SOURCE / "so8").glob("*.py"))


def test_no_pickles_and_no_remote_code_by_default() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    assert "import pickle" not in text
    assert "torch.save" not in text
    assert "trust_remote_code: bool = True" not in text
