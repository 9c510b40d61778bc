"""The audit log: proves later what was answered to whom, and nobody can read it; docs/audit.md."""

import importlib.util

from aegis.errors import MissingPackageError

if importlib.util.find_spec("cryptography") is None:
    raise MissingPackageError(
        "the audit log needs the package cryptography; run: pip install 'aegis-so8t[serve]'"
    )

from aegis.audit.entry import AuditEntry
from aegis.audit.keystore import AuditKeys
from aegis.audit.log import AuditLog

__all__ = ["AuditEntry", "AuditKeys", "AuditLog"]
