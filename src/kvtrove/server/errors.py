"""Errors as clients see them: `{"error": {"message", "type", "param", "code"}}`, the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from kvtrove.request import EngineError, RequestError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A request is refused or fails. `param`: the field to change; `code`: a word that programs can test."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The top-level `type` is what Anthropic's clients look for beside OpenAI's `error`."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error = {"message": message, "type": kind, "param": param, "code": code or HTTPStatus(status).name.lower()}
    return {"type": "error", "error": error}


def refused(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def busy(message: str, retry_after: int) -> ApiError:
    return ApiError(429, message, code="server_busy", headers={"retry-after": str(retry_after)})


def draining(retry_after: int) -> ApiError:
    headers = {"retry-after": str(retry_after), "connection": "close"}
    return ApiError(503, "the server is shutting down and takes no new requests", code="draining", headers=headers)


def engine_failed(error: BaseException) -> ApiError:
    """A request that was running when the engine's step failed."""
    return ApiError(500, f"the engine failed: {type(error).__name__}; see the server's log", code="engine_error")


def engine_stopped() -> ApiError:
    return ApiError(503, "the engine has stopped after an error; the server must be restarted", code="engine_dead")


def shut_down() -> ApiError:
    """A request that had not finished when the server's time to drain was up."""
    return ApiError(503, "the server has shut down before this request was finished", code="shut_down")


def timed_out(seconds: float) -> ApiError:
    return ApiError(408, f"the request took longer than {seconds:g} s and was stopped", code="request_timeout")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told about `error`; details of unexpected ones stay in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return refused(str(error), error.param)
    if isinstance(error, EngineError):
        return ApiError(500, str(error), code="engine_error")
    if isinstance(error, UnicodeEncodeError):
        return refused("the text holds half of a surrogate pair, which is no character", code="invalid_unicode")
    if isinstance(error, RecursionError):  # JSON inside a string, such as the arguments of a call
        return refused("the request nests arrays and objects too deeply", code="nested_too_deep")
    return ApiError(500, "an unexpected error happened; see the server's log", code="internal_error")
