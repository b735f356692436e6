"""From exceptions to the one envelope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from gateway.errors import from_status
from gateway.responses import answer_error
from models.errors import IgenError, InvalidInputError, problems_from_pydantic
from models.logs import get_logger

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

log = get_logger(__name__)


def install(app: FastAPI) -> None:
    """Register the handlers. What none of them knows is answered by the outermost middleware."""
    app.add_exception_handler(IgenError, _igen)  # type: ignore[arg-type] # Starlette's type asks for Exception
    app.add_exception_handler(HTTPException, _http)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _parameters)  # type: ignore[arg-type]


async def _igen(request: Request, error: IgenError) -> JSONResponse:
    if error.report:
        log.error("request_failed", code=error.code, exc_info=error)
    return answer_error(request.scope, error)


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    allow = {"Allow": error.headers["Allow"]} if error.headers and "Allow" in error.headers else {}
    return answer_error(request.scope, from_status(error.status_code, str(error.detail)), headers=allow)


async def _parameters(request: Request, error: RequestValidationError) -> JSONResponse:
    problems = problems_from_pydantic(error.errors(), skip=1)
    message = "; ".join(f"{problem.field}: {problem.reason}" for problem in problems)
    return answer_error(request.scope, InvalidInputError(message, details=problems))
