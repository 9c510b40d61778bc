from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from aegis.errors import BadInputError, ModelError
from aegis.model.base import resolve_base
from aegis.model.embedded import ACCEPTED_ENV, MODELS, EmbeddedModel, accept_licences

PARTS = (b"GGUF and", b" the rest")
# What the real one's assemble does, but for the hash, and it counts.
ASSEMBLE = """
from pathlib import Path
calls = []
def assemble(path, overwrite):
    calls.append(path)
    here = Path(__file__).parent.parent
    parts = [here / f"aegis_part{number}" / "part" for number in (1, 2)]
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
"""


@pytest.fixture
def parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folder: Path) -> EmbeddedModel:
    """A model in the parts of two wheels, under terms; to convert it takes no time."""
    monkeypatch.setenv("AEGIS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(ACCEPTED_ENV, raising=False)
    names = ("aegis_whole", "aegis_part1", "aegis_part2")
    for name in names:
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("")
    site = tmp_path / "site"
    (site / "aegis_whole" / "__init__.py").write_text(ASSEMBLE)
    (site / "aegis_whole" / "TERMS.html").write_text("be good")
    for name, part in zip(names[1:], PARTS, strict=True):
        (site / name / "part").write_bytes(part)
    monkeypatch.syspath_prepend(str(site))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    real = MODELS["embedded-multilingual"]
    model = dataclasses.replace(
        real,
        spec="parted",
        modules=names,
        install="pip install parted",
        file="parted.gguf",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        size=17,
        licence=dataclasses.replace(real.licence, document="TERMS.html"),
    )
    monkeypatch.setitem(MODELS, "parted", model)

    def convert(gguf: Path, staging: Path, *, spec: str) -> None:
        assert gguf.read_bytes() == b"".join(PARTS)
        shutil.copytree(base_folder, staging, dirs_exist_ok=True)

    monkeypatch.setattr("aegis.model.base._convert", convert)
    return model


def test_the_licence_is_asked_for_before_anything_is_put_together(
    parted: EmbeddedModel, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as error:
        resolve_base("parted")
    document = tmp_path / "site" / "aegis_whole" / "TERMS.html"
    for words in (
        "Gemma Terms of Use", str(document), parted.licence.url, "--accept-licence gemma",
        f"{ACCEPTED_ENV}=gemma",
    ):  # fmt: skip
        assert words in str(error.value)
    assert error.value.exit_code == 2
    assert not (tmp_path / "home").exists()
    assert parted.accepted() == {}


@pytest.mark.parametrize("by", ["option", "environment"])
def test_it_is_asked_for_once_and_the_terms_go_along(
    parted: EmbeddedModel, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "option":
        accept_licences(["gemma"])
    else:
        monkeypatch.setenv(ACCEPTED_ENV, "other, gemma")
    base = resolve_base("parted")
    first = parted.accepted()
    assert (first["licence"], first["terms"]) == ("gemma", parted.licence.url)
    monkeypatch.delenv(ACCEPTED_ENV, raising=False)
    assert resolve_base("parted").fingerprint == base.fingerprint
    assert parted.accepted() == first
    assert parted.licence.notice in (base.folder / "NOTICE.txt").read_text()
    assert (base.folder / "TERMS.html").read_text() == "be good"
    assert len(sys.modules["aegis_whole"].calls) == 1
    assert not list(base.folder.parent.glob("**/*.gguf"))  # only what was made of it is kept


def test_a_damaged_note_is_none(parted: EmbeddedModel, tmp_path: Path) -> None:
    accept_licences(["gemma"])
    (tmp_path / "home" / "licences" / "gemma.json").write_text("{")
    with pytest.raises(ModelError, match="not accepted"):
        resolve_base("parted")


def test_a_licence_that_nobody_asks_for_cannot_be_accepted() -> None:
    with pytest.raises(BadInputError, match=r"'apache-2.0' is no licence .*known: gemma"):
        accept_licences(["apache-2.0"])


@pytest.mark.parametrize("damage", ["another", "none"])
def test_a_damaged_part_is_told_with_the_command(
    parted: EmbeddedModel, tmp_path: Path, damage: str
) -> None:
    accept_licences(["gemma"])
    part = tmp_path / "site" / "aegis_part2" / "part"
    if damage == "another":
        part.write_bytes(b" the resT")
    else:
        part.unlink()
    with pytest.raises(ModelError, match=r"parted.gguf.*pip install --force-reinstall parted"):
        resolve_base("parted")
    assert not [path for path in (tmp_path / "home" / "bases").iterdir() if path.is_dir()]


def test_the_default_base_asks_nobody_for_anything() -> None:
    assert [model.spec for model in MODELS.values() if not model.licence.document] == ["embedded"]
