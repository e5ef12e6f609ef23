"""Errors of the API as problem details (RFC 9457, `application/problem+json`), without paths of the machine."""

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(BaseModel):
    """Body of an error."""

    type: str = Field(default="about:blank", description="`about:blank`: the status identifies the problem")
    title: str
    status: int
    detail: str = Field(description="what was wrong, what was received, what to do")
    errors: list[str] = Field(default=[], description="a line for each invalid file or field")


class Problem(HTTPException):
    """A request that cannot be answered; may be raised in routes, what they call, and middleware."""

    def __init__(
        self, status: HTTPStatus, detail: str, *, errors: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        """Set the status, one or two sentences, a line for each invalid part, and the headers of the answer."""
        super().__init__(status, detail, headers)
        self.errors = list(errors)


def response(error: HTTPException) -> JSONResponse:
    """Return the answer for an error."""
    details = ProblemDetails(
        title=HTTPStatus(error.status_code).phrase,
        status=error.status_code,
        detail=error.detail,
        errors=error.errors if isinstance(error, Problem) else [],
    )
    return JSONResponse(
        details.model_dump(), error.status_code, headers=dict(error.headers or {}), media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Make `app` answer every error with problem details."""

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            error.detail = f"There is no route for this {request.method} request. /openapi.json lists the routes."
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        lines = [f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}" for found in error.errors()]
        detail = "The request does not match /openapi.json."
        return response(Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, errors=lines))

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        detail = "Internal error; the cause is in the log of the server."
        return response(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, detail))

    describe = app.openapi

    def describe_with_problems() -> dict[str, Any]:
        schema = describe()
        schema["components"]["schemas"][ProblemDetails.__name__] = ProblemDetails.model_json_schema()
        return schema

    app.openapi = describe_with_problems  # type: ignore[method-assign]


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route for problems with these statuses."""
    schema = {"schema": {"$ref": "#/components/schemas/ProblemDetails"}}
    return {int(status): {"description": status.phrase, "content": {MEDIA_TYPE: schema}} for status in statuses}


V1_PROBLEMS = documented(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.MISDIRECTED_REQUEST,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
