"""What goes wrong, as the OpenAI protocol says it: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from puyulm.errors import EngineLost, PuyuError, QueueFull
from puyulm.serve.protocol import cut

log = logging.getLogger("puyulm.serve")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_FIELD = re.compile(r"([a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)*)(?=:| must )")
_NAME = re.compile(r"[a-z_]\w*")
_TYPE_NAMES = ("str", "int", "float", "bool", "list", "dict", "nullable")
_CLIENT_LEFT = 499  # as nginx counts it; nobody reads the answer
_SHOWN = 100  # characters of a wrong value that a message repeats


class ApiError(PuyuError):
    """An answer other than 200.

    Attributes:
        status: Of HTTP.
        param: The field of the request that is wrong.
        code: For programs.
        retry_after: Seconds after which trying again makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def error_body(error: BaseException) -> dict[str, Any]:
    """The JSON of an error. What is not meant for clients stays in the log."""
    if not isinstance(error, PuyuError):
        return _body("the server failed at this request; its log says more", 500)
    if isinstance(error, ApiError):
        return _body(str(error), error.status, error.param, error.code)
    if isinstance(error, QueueFull):
        return _body(str(error), 429, code="queue_full")
    field = _FIELD.match(str(error))
    return _body(str(error), status_of(error), field[1] if field else None)


def error_response(error: BaseException) -> Response:
    """The response to a request that failed."""
    retry_after = error.retry_after if isinstance(error, ApiError) else 1 if isinstance(error, QueueFull) else None
    return respond(error_body(error), status_of(error), retry_after)


def status_of(error: BaseException) -> int:
    """Of HTTP, for any exception."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, QueueFull):
        return 429
    if isinstance(error, EngineLost):
        return 503
    return 400 if isinstance(error, PuyuError) else 500


def respond(body: Mapping[str, Any], status: int, retry_after: float | None = None) -> Response:
    """An error's response."""
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after + 0.5)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers)


def add_handlers(app: FastAPI) -> None:
    """Makes every failure of an app an error of the protocol."""

    @app.exception_handler(PuyuError)
    async def refused(request: Request, error: PuyuError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(_invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 400 and isinstance(error.__cause__, (ValueError, RecursionError)):
            message = "the body cannot be read: JSON in UTF-8 is understood, not nested too deeply, with plain numbers"
        elif error.status_code == 404:
            message = f"there is nothing at {request.url.path}"
        elif error.status_code == 405:
            message = f"{request.url.path} does not take {request.method}"
        response = respond(_body(message, error.status_code), error.status_code)
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=_CLIENT_LEFT)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return error_response(error)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """One line for the first field that does not fit the request's schema."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}")
    place = _place(first)
    if first["type"] == "value_error":  # of a check of ours, which names the place itself
        message = str(first["msg"]).removeprefix("Value error, ")
        named = _FIELD.match(message)
        return ApiError(message, param=named[1] if named else None)
    if not place:
        return ApiError("the body must be a JSON object, sent as application/json")
    # A field that may be of several kinds has an error for each: those that came the furthest are of use.
    own = [error for error in errors if _place(error)[:1] == place[:1]]
    depth = max(len(_place(error)) for error in own)
    deepest = [error for error in own if len(_place(error)) == depth]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _place(deepest[0])).lstrip(".")
    field = cut(field)
    says = list(dict.fromkeys(_says(error) for error in deepest))
    value = deepest[0].get("input")
    shown = f", not {_short(value)}" if value is None or isinstance(value, str | int | float | bool) else ""
    missing = deepest[0]["type"] == "missing"
    return ApiError(f"{field}: {'missing' if missing else ', or '.join(says) + shown}", param=field)


def _place(error: Mapping[str, Any]) -> list[str | int]:
    """Names and numbers that lead to a field, without the names of types that stand between them."""
    return [part for part in error["loc"] if part != "body" and _is_field(part)]


def _says(error: Mapping[str, Any]) -> str:
    return re.sub(r"^(Input|List|String|Value) should", "must", str(error["msg"]))


def _is_field(part: object) -> bool:
    return isinstance(part, int) or (
        isinstance(part, str) and _NAME.fullmatch(part) is not None and part not in _TYPE_NAMES
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _body(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    # Half a surrogate pair, which JSON can spell, cannot be sent.
    message = message.encode("utf-8", "replace").decode("utf-8")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
