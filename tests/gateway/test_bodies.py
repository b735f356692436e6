"""What the gateway refuses, and how: every error in the one envelope, naming field and reason."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway, StartGateway
    from tests.support.fake_backend import FakeBackend

PROMPT = {"prompt": "A futuristic cityscape at sunset"}


WRONG: list[tuple[Any, str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "   "}, "prompt"),
    ({"prompt": "x" * 1001}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({**PROMPT, "colour": "red"}, "colour"),
    ({**PROMPT, "webhook": "http://x.example"}, "webhook"),
    ({**PROMPT, "s3Config": {}}, "s3Config"),
    ({"input": PROMPT}, "prompt"),
    ({**PROMPT, "width": 100}, "width"),
    ({**PROMPT, "width": True}, "width"),
    ({**PROMPT, "width": "64"}, "width"),
    ({**PROMPT, "height": 8192}, "height"),
    ({**PROMPT, "seed": -2}, "seed"),
    ({**PROMPT, "seed": 2**32}, "seed"),
    ({**PROMPT, "seed": 1.5}, "seed"),
    ({**PROMPT, "num_images": 17}, "num_images"),
    ({**PROMPT, "num_inference_steps": 0}, "num_inference_steps"),
    ({**PROMPT, "guidance_scale": 51}, "guidance_scale"),
    ({**PROMPT, "request_id": "../x"}, "request_id"),
    ([PROMPT], "body"),
    ("prompt", "body"),
]


async def test_a_wrong_body_names_field_and_reason(gateway: RunningGateway, backend: FakeBackend) -> None:
    for body, field in WRONG:
        reply = await gateway.request("POST", "/api/generate/", json=body)
        assert reply.status == 422, body
        error = reply.json["error"]
        assert (reply.json["status"], error["code"]) == ("error", "invalid_input")
        assert field in [detail["field"] for detail in error["details"]], body
        assert all(detail["reason"] for detail in error["details"])
        assert error["request_id"] == reply.headers["X-Request-ID"]
    assert backend.submissions == []
    assert await gateway.rows() == []


NOT_MEANT: list[tuple[bytes, int, str]] = [
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
]


async def test_a_body_that_is_no_json_or_cannot_be_meant(gateway: RunningGateway) -> None:
    for raw, status, field in NOT_MEANT:
        reply = await gateway.request(
            "POST", "/api/generate/", data=raw, headers={"Content-Type": "application/json"}
        )
        (first, *_) = reply.json["error"]["details"]
        assert (reply.status, first["field"]) == (status, field), raw[:60]
        assert first["reason"]
    assert await gateway.rows() == []


async def test_a_key_given_twice_takes_the_last(gateway: RunningGateway, backend: FakeBackend) -> None:
    raw = b'{"prompt": "first", "prompt": "last"}'
    reply = await gateway.request("POST", "/api/generate/", data=raw, headers={"Content-Type": "application/json"})
    assert reply.status == 200
    assert [job.input["prompt"] for job in backend.jobs.values()] == ["last"]


WRONG_HEADERS: list[tuple[dict[str, str], str]] = [
    ({"Content-Type": "text/plain"}, "Content-Type"),
    ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type"),
    ({"Content-Type": "application/json; charset=latin-1"}, "Content-Type"),
    ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, "Content-Encoding"),
    ({"Content-Type": "application/json", "Idempotency-Key": "x" * 256}, "Idempotency-Key"),
    ({"Content-Type": "application/json", "Idempotency-Key": "tab\there"}, "Idempotency-Key"),
    ({"Content-Type": "application/json", "Host": "evil.example"}, "Host"),
    ({"Content-Type": "application/json", "Host": "localhost@evil.example"}, "Host"),
]


async def test_a_wrong_header_is_400_and_named(gateway: RunningGateway) -> None:
    for headers, field in WRONG_HEADERS:
        reply = await gateway.request("POST", "/api/generate/", data=json.dumps(PROMPT).encode(), headers=headers)
        assert (reply.status, reply.code) == (400, "bad_request"), headers
        assert reply.json["error"]["details"][0]["field"] == field
    assert await gateway.rows() == []


async def test_spellings_of_json_are_taken(gateway: RunningGateway) -> None:
    data = json.dumps(PROMPT).encode()
    for kind in ("application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"):
        reply = await gateway.request("POST", "/api/generate/", data=data, headers={"Content-Type": kind})
        assert reply.status == 200, kind


ROUTED = [
    ("GET", "/nowhere", 404, "not_found"),
    ("GET", "/api/generate/", 405, "method_not_allowed"),
    ("DELETE", "/api/generations/", 405, "method_not_allowed"),
    ("GET", "/api/generations/?limit=0", 422, "invalid_input"),
    ("GET", "/api/generations/?limit=many", 422, "invalid_input"),
    ("GET", "/api/generations/?before=1'--", 422, "invalid_input"),
    ("GET", "/api/generations/gen_0", 404, "not_found"),
    ("GET", "/api/generations/%00", 404, "not_found"),
    ("GET", "/docs", 404, "not_found"),
]


async def test_the_router_speaks_the_envelope_too(gateway: RunningGateway) -> None:
    for method, path, status, code in ROUTED:
        reply = await gateway.request(method, path)
        assert (reply.status, reply.code) == (status, code), path
        assert reply.json["error"]["request_id"] == reply.headers["X-Request-ID"]
        if status == 405:
            assert reply.headers["Allow"]


@pytest.mark.parametrize(
    ("path", "limit", "why"),
    [("/api/generate/", "max_generate_bytes", "by its address"), ("/api/frames", "max_body_bytes", "bytes")],
)
async def test_a_body_over_the_limit_is_413_declared_or_not(
    start_gateway: StartGateway, path: str, limit: str, why: str
) -> None:
    gateway = await start_gateway(max_generate_bytes=300_000, max_body_bytes=200_000)
    big = json.dumps({"prompt": "x" * getattr(gateway.settings, limit)}).encode()

    async def chunks() -> Any:
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for data in (io.BytesIO(big), chunks()):
        reply = await gateway.request("POST", path, data=data, headers={"Content-Type": "application/json"})
        assert (reply.status, reply.code) == (413, "too_large")
        (detail,) = reply.json["error"]["details"]
        assert detail["field"] == "body"
        assert str(getattr(gateway.settings, limit)) in detail["reason"]
        assert detail["reason"].endswith(why)
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
