"""What stands before the application: each middleware one check, the log outermost."""

from aegis.serve.middleware.access import AccessMiddleware, Caller
from aegis.serve.middleware.body_limit import BodyLimitMiddleware
from aegis.serve.middleware.request_log import RequestLogMiddleware

__all__ = ["AccessMiddleware", "BodyLimitMiddleware", "Caller", "RequestLogMiddleware"]
