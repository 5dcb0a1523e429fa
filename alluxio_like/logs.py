"""Structured logs with request ids, free of secrets.

Owns the set-up of the standard library's logging and the context variable that carries a request's id.
"""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is being served; rpc sets it from x-request-id."""
