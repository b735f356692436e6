"""What the gateway refuses, and how: every error in the one envelope, naming field and reason."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway
    from tests.support.fake_backend import FakeBackend

PROMPT = {"prompt": "A futuristic cityscape at sunset"}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 422, "prompt"),
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": "   "}, 422, "prompt"),
        ({"prompt": "x" * 1001}, 422, "prompt"),
        ({"prompt": 5}, 422, "prompt"),
        ({"prompt": None}, 422, "prompt"),
        ({"prompt": "a\0b"}, 422, "prompt"),
        ({**PROMPT, "colour": "red"}, 422, "colour"),
        ({**PROMPT, "webhook": "http://x.example"}, 422, "webhook"),
        ({**PROMPT, "s3Config": {}}, 422, "s3Config"),
        ({"input": PROMPT}, 422, "prompt"),
        ({**PROMPT, "width": 100}, 422, "width"),
        ({**PROMPT, "width": True}, 422, "width"),
        ({**PROMPT, "width": "64"}, 422, "width"),
        ({**PROMPT, "height": 8192}, 422, "height"),
        ({**PROMPT, "seed": -1}, 422, "seed"),
        ({**PROMPT, "seed": 2**32}, 422, "seed"),
        ({**PROMPT, "seed": 1.5}, 422, "seed"),
        ({**PROMPT, "num_images": 17}, 422, "num_images"),
        ({**PROMPT, "num_inference_steps": 0}, 422, "num_inference_steps"),
        ({**PROMPT, "guidance_scale": 51}, 422, "guidance_scale"),
        ({**PROMPT, "request_id": "../x"}, 422, "request_id"),
        ([PROMPT], 422, "body"),
        ("prompt", 422, "body"),
    ],
    ids=str,
)
async def test_a_wrong_body_names_field_and_reason(
    gateway: RunningGateway, backend: FakeBackend, body: Any, status: int, field: str
) -> None:
    reply = await gateway.request("POST", "/api/generate/", json=body)
    assert reply.status == status
    error = reply.json["error"]
    assert reply.json["status"] == "error"
    assert error["code"] == "invalid_input"
    assert field in [detail["field"] for detail in error["details"]]
    assert all(detail["reason"] for detail in error["details"])
    assert error["request_id"] == reply.headers["X-Request-ID"]
    assert backend.submissions == []
    assert await gateway.rows() == []


@pytest.mark.parametrize(
    ("raw", "status", "field"),
    [
        (b"", 400, "body"),
        (b"{", 400, "body"),
        (b"null", 422, "body"),
        (b"prompt=x", 400, "body"),
        (b"\xff\xfe", 400, "body"),
        (b'{"prompt": "\\ud800"}', 400, "body"),
        (b'{"prompt": "x"} trailing', 400, "body"),
        (b'{"prompt": "x", "guidance_scale": NaN}', 422, "guidance_scale"),
        (b'{"prompt": "x", "guidance_scale": 1e999}', 422, "guidance_scale"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 422, "body"),
        (b'{"prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 422, "body"),
        (b'{"prompt": ' + b"[" * 50 + b"]" * 50 + b"}", 422, "prompt"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_body_that_is_no_json_or_cannot_be_meant(
    gateway: RunningGateway, raw: bytes, status: int, field: str
) -> None:
    reply = await gateway.request("POST", "/api/generate/", data=raw, headers={"Content-Type": "application/json"})
    assert (reply.status, reply.json["error"]["details"][0]["field"]) == (status, field)
    assert reply.json["error"]["details"][0]["reason"]


async def test_a_key_given_twice_takes_the_last(gateway: RunningGateway, backend: FakeBackend) -> None:
    raw = b'{"prompt": "first", "prompt": "last"}'
    reply = await gateway.request("POST", "/api/generate/", data=raw, headers={"Content-Type": "application/json"})
    assert reply.status == 200
    assert [job.input["prompt"] for job in backend.jobs.values()] == ["last"]


@pytest.mark.parametrize(
    ("headers", "status", "field"),
    [
        ({"Content-Type": "text/plain"}, 400, "Content-Type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400, "Content-Type"),
        ({"Content-Type": "application/json; charset=latin-1"}, 400, "Content-Type"),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 400, "Content-Encoding"),
        ({"Content-Type": "application/json", "Idempotency-Key": "x" * 256}, 400, "Idempotency-Key"),
        ({"Content-Type": "application/json", "Idempotency-Key": "tab\there"}, 400, "Idempotency-Key"),
        ({"Content-Type": "application/json", "Host": "evil.example"}, 400, "Host"),
        ({"Content-Type": "application/json", "Host": "localhost@evil.example"}, 400, "Host"),
    ],
    ids=str,
)
async def test_a_wrong_header_is_400_and_named(
    gateway: RunningGateway, headers: dict[str, str], status: int, field: str
) -> None:
    reply = await gateway.request("POST", "/api/generate/", data=json.dumps(PROMPT).encode(), headers=headers)
    assert (reply.status, reply.code) == (status, "bad_request")
    assert reply.json["error"]["details"][0]["field"] == field
    assert await gateway.rows() == []


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"])
async def test_spellings_of_json_are_taken(gateway: RunningGateway, kind: str) -> None:
    data = json.dumps(PROMPT).encode()
    reply = await gateway.request("POST", "/api/generate/", data=data, headers={"Content-Type": kind})
    assert reply.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/generate/", 405, "method_not_allowed"),
        ("DELETE", "/api/generations/", 405, "method_not_allowed"),
        ("GET", "/api/generations/?limit=0", 422, "invalid_input"),
        ("GET", "/api/generations/?limit=many", 422, "invalid_input"),
        ("GET", "/api/generations/?before=1'--", 422, "invalid_input"),
        ("GET", "/api/generations/gen_0", 404, "not_found"),
        ("GET", "/api/generations/%00", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
async def test_the_router_speaks_the_envelope_too(
    gateway: RunningGateway, method: str, path: str, status: int, code: str
) -> None:
    reply = await gateway.request(method, path)
    assert (reply.status, reply.code) == (status, code)
    assert reply.json["error"]["request_id"] == reply.headers["X-Request-ID"]
    if status == 405:
        assert reply.headers["Allow"]


async def test_a_body_over_the_limit_is_413_declared_or_not(gateway: RunningGateway) -> None:
    big = json.dumps({"prompt": "x" * (gateway.settings.max_body_bytes + 1)}).encode()

    async def chunks() -> Any:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for data in (io.BytesIO(big), chunks()):
        reply = await gateway.request(
            "POST", "/api/generate/", data=data, headers={"Content-Type": "application/json"}
        )
        assert (reply.status, reply.code) == (413, "too_large")
        assert reply.json["error"]["details"][0]["field"] == "body"
        assert reply.headers["Connection"] == "close"


async def test_an_unexpected_exception_is_the_envelope_without_a_word_of_it(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise RuntimeError("internal detail")

    monkeypatch.setattr("gateway.generate.parse_input", explode)
    reply = await gateway.generate()
    assert (reply.status, reply.code) == (500, "internal_error")
    assert b"internal detail" not in reply.body
    assert b"Traceback" not in reply.body
    assert reply.headers["X-Request-ID"] == reply.json["error"]["request_id"]


async def test_the_openapi_document_names_body_errors_and_security(gateway: RunningGateway) -> None:
    document = (await gateway.request("GET", "/openapi.json", key=None)).json
    post = document["paths"]["/api/generate/"]["post"]
    body = post["requestBody"]["content"]["application/json"]["schema"]
    assert {"prompt", "seed", "strict"} <= set(body["properties"])
    assert post["security"]
    for status in ("401", "422", "502", "503", "504"):
        schema = post["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}
    assert "HTTPValidationError" not in json.dumps(document)
