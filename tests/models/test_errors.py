"""The envelope's shape, and what every kind of error must keep to."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re

import pytest

import models
from models.errors import (
    FieldProblem,
    IgenError,
    InvalidInputError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
    envelope,
    problems_from_pydantic,
)


def every_kind() -> list[type[IgenError]]:
    for module in pkgutil.walk_packages(models.__path__, "models."):
        if ".migrations" not in module.name:
            importlib.import_module(module.name)
    found: list[type[IgenError]] = []
    waiting = [IgenError]
    while waiting:
        kind = waiting.pop()
        found.append(kind)
        waiting += [each for each in kind.__subclasses__() if each.__module__.startswith("models.")]
    return found


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_every_kind_makes_an_envelope(kind: type[IgenError]) -> None:
    error = kind()
    body = envelope(error, "req-1")
    assert list(body) == ["status", "error"]
    assert body["status"] == "error"
    assert list(body["error"]) == ["code", "message", "type", "param", "details", "retryable", "request_id"]
    assert re.fullmatch(r"[a-z][a-z_]+", body["error"]["code"])
    assert 400 <= kind.status < 600
    assert body["error"]["message"] == str(error) == error.message
    assert error.message.endswith((".", "`."))
    assert body["error"]["type"] == ("invalid_request_error" if kind.status < 500 else "server_error")
    assert body["error"]["request_id"] == "req-1"
    json.dumps(body, allow_nan=False)
    assert error.as_plain_string() == f"{error.code}: {error.message}"


def test_there_are_kinds_from_each_module() -> None:
    names = {kind.__name__ for kind in every_kind()}
    assert {"IgenError", "FetchBlockedError", "FetchTimeoutError", "StoreError", "ObjectMissingError"} <= names


def test_fields_are_named() -> None:
    error = InvalidInputError(
        "two are wrong", details=[FieldProblem("a.b", "too small"), FieldProblem("c", "unknown")]
    )
    body = envelope(error)["error"]
    assert body["param"] == "a.b"
    assert body["details"] == [{"field": "a.b", "reason": "too small"}, {"field": "c", "reason": "unknown"}]
    assert body["request_id"] is None


def test_one_field() -> None:
    error = InvalidInputError.for_field("seed", "must be positive")
    assert error.message == "seed: must be positive"
    assert error.details == (FieldProblem("seed", "must be positive"),)


def test_headers() -> None:
    assert IgenError().headers == {}
    assert UnavailableError(retry_after_s=7).headers == {"Retry-After": "7"}
    assert TooManyRequestsError(retry_after_s=0).headers == {"Retry-After": "1"}
    assert UnauthorizedError(retry_after_s=3).headers == {"Retry-After": "3", "WWW-Authenticate": "Bearer"}


def test_problems_from_pydantic() -> None:
    errors = [
        {"loc": ("body", "policy", 0, "ttl"), "msg": "Value error, too short"},
        {"loc": ("body",), "msg": "Field required"},
        {"loc": ("body", "x" * 999), "msg": "Extra inputs are not permitted"},
    ]
    assert problems_from_pydantic(errors, skip=1) == [
        FieldProblem("policy.0.ttl", "too short"),
        FieldProblem("body", "Field required"),
        FieldProblem("x" * 200, "Extra inputs are not permitted"),
    ]
