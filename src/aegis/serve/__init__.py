"""Answers whose private thinking stays private."""

from importlib.util import find_spec

from aegis.errors import MissingPackageError


def require_packages() -> None:
    """Raise MissingPackageError unless the server's optional packages are installed."""
    for package in ("cryptography", "fastapi", "prometheus_client", "uvicorn"):
        if find_spec(package) is None:
            raise MissingPackageError(
                f"aegis serve needs {package}; run: pip install 'aegis-so8t[serve]'"
            )
