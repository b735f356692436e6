"""Registering an address with and without its last slash: present clients use either, and nothing redirects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from gateway.schemas import ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastapi import APIRouter

Handler = TypeVar("Handler", bound="Callable[..., Awaitable[Any]]")


def route(
    router: APIRouter, method: str, path: str, *, status: int = 200, **options: Any
) -> Callable[[Handler], Handler]:
    """`path` without its last slash; the same with one is served too and left out of the OpenAPI document."""
    responses = {**options.pop("responses", {}), **ERRORS}

    def register(handler: Handler) -> Handler:
        common = {"methods": [method], "status_code": status, "responses": responses, "response_model": None}
        router.add_api_route(path, handler, **{**common, **options})
        router.add_api_route(f"{path}/", handler, **{**common, **options, "include_in_schema": False})
        return handler

    return register
