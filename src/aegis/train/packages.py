"""The optional packages that training may need, looked for before any weight is loaded."""

from __future__ import annotations

import importlib.metadata

from aegis.errors import MissingPackageError

TRL_ALGORITHMS = ("dpo", "grpo", "rloo")
# `train/trainer.py` and its users override what has no promise of staying as it is from one minor version to the next.
TRL_VERSION = "1.16"


def require_trl(algorithm: str) -> None:
    """The packages that `train.algorithm` needs are installed; nothing is imported.

    Raises:
        MissingPackageError: if they are not.
    """
    if algorithm not in TRL_ALGORITHMS:
        return
    try:
        importlib.metadata.version("datasets")
        found = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError as error:
        problem = f"needs the package {error.name}"
    else:
        if found.startswith(f"{TRL_VERSION}."):
            return
        problem = f"needs trl {TRL_VERSION}, and {found} is installed"
    raise MissingPackageError(
        f"train.algorithm {algorithm!r} {problem}; run: pip install 'trl=={TRL_VERSION}.*' 'datasets>=3'"
    )
