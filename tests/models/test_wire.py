"""The bounds of every field of the wire, at them and just outside, and the error that names each."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from models.errors import InvalidInputError
from models.wire import (
    JobAnswer,
    JobInput,
    JobRequest,
    JobState,
    Policy,
    S3Config,
    invalid_input,
    parse_input,
)

NAN, INFINITY = float("nan"), float("inf")
S3: dict[str, Any] = {"accessId": "i", "accessSecret": "hush", "bucketName": "abc", "endpointUrl": "https://x"}
DAY_MS = 86_400_000

GOOD: list[tuple[str, Any]] = [
    *(
        ("prompt", "a"),
        ("prompt", "x" * 1000),
        ("prompt", "a\tb\nc\rd"),
        ("prompt", "猫 🐈 \u200d"),
        ("prompt", "' OR 1=1 --"),
    ),
    *(("negative_prompt", ""), ("negative_prompt", None), ("negative_prompt", "x" * 1000)),
    *(
        ("width", 64),
        ("width", 4096),
        ("width", 72),
        ("width", None),
        ("height", 64),
        ("height", 4096),
        ("height", None),
    ),
    *(("num_inference_steps", 1), ("num_inference_steps", 150), ("num_inference_steps", None)),
    *(("guidance_scale", 0), ("guidance_scale", 0.0), ("guidance_scale", 50), ("guidance_scale", 7.5)),
    *(("seed", 0), ("seed", 2**32 - 1), ("seed", None), ("num_images", 1), ("num_images", 16)),
    *(("scheduler", "e"), ("scheduler", "x" * 64), ("scheduler", None), ("strict", True), ("strict", False)),
    *(("request_id", "a"), ("request_id", "A0_.-z"), ("request_id", "x" * 128), ("request_id", None)),
    *(("image_url", "https://x/"), ("image_url", "x" * 4096), ("strength", 0), ("strength", 1.0)),
    *(
        ("refiner_inference_steps", 0),
        ("refiner_inference_steps", 150),
        ("high_noise_frac", 0.0),
        ("high_noise_frac", 1),
    ),
]
BAD: list[tuple[str, Any]] = [
    *(("prompt", bad) for bad in ("", "  \n ", "x" * 1001, None, 5, True, ["a"], {"a": 1}, 1.5)),
    *(("prompt", f"a{char}b") for char in ("\0", "\x07", "\x1b[31m", "\x1f", "\x7f", "\x85", "\x9b", "\ud800")),
    *(("negative_prompt", bad) for bad in ("x" * 1001, "a\0", 5, False, ["a"])),
    *(("width", bad) for bad in (56, 63, 65, 1001, 4097, 4104, 0, -64, 10**30, True, "512", 512.0, NAN, [64])),
    *(("height", bad) for bad in (56, 63, 65, 4104, 0, -64, True, "512", 512.5, INFINITY, {"a": 1})),
    *(("num_inference_steps", bad) for bad in (0, -1, 151, 10**20, True, "30", 30.0, NAN)),
    *(("guidance_scale", bad) for bad in (-0.001, 50.001, NAN, INFINITY, -INFINITY, True, "7.5", 10**400, [7])),
    *(("seed", bad) for bad in (-1, 2**32, 2**64, 10**400, -(10**400), True, "1", 1.0, NAN)),
    *(("num_images", bad) for bad in (0, 17, -1, True, "2", 2.0, None)),
    *(("scheduler", bad) for bad in ("", "x" * 65, 5, True, "a\0b")),
    *(("strict", bad) for bad in (0, 1, "true", None)),
    *(("request_id", bad) for bad in ("", "x" * 129, "-a", ".a", "a/b", "a b", "a\n", "ä", 5, "../x")),
    *(("image_url", bad) for bad in ("x" * 4097, 5, "a\0")),
    *(("strength", bad) for bad in (-0.01, 1.01, NAN, True, "0.5")),
    *(("refiner_inference_steps", bad) for bad in (-1, 151, True, 1.0)),
    *(("high_noise_frac", bad) for bad in (-0.01, 1.01, INFINITY, True, "0.5")),
    *(("Prompt", "a"), ("steps", 3), ("n", 1), ("negative_promt", "typo")),
]


def test_every_field_is_in_both_tables() -> None:
    assert {field for field, _ in GOOD} == {field for field, _ in BAD} & set(JobInput.model_fields)
    assert {field for field, _ in GOOD} == set(JobInput.model_fields)


@pytest.mark.parametrize(("field", "value"), GOOD)
def test_good(field: str, value: Any) -> None:
    assert getattr(parse_input({"prompt": "a", field: value}), field) == value


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad(field: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"prompt": "a", field: value})
    assert caught.value.status == 422
    assert [problem.field for problem in caught.value.details] == [field]
    assert caught.value.message.startswith(f"{field}: ")
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("payload", [None, [], "text", 5, True, [{"prompt": "a"}]])
def test_not_an_object(payload: Any) -> None:
    with pytest.raises(InvalidInputError, match="body: "):
        parse_input(payload)


def test_every_wrong_field_is_named() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"width": 1, "seed": -1, "nonsense": 1})
    assert [problem.field for problem in caught.value.details] == ["prompt", "width", "seed", "nonsense"]


def test_size_error_names_the_nearest() -> None:
    with pytest.raises(InvalidInputError, match="multiple of 8; 512 and 520 are nearest"):
        parse_input({"prompt": "a", "width": 513})


def test_an_error_repeats_little_of_the_request() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"prompt": "a", **{f"{'x' * 5000}{number}": "secret" for number in range(1000)}})
    assert len(caught.value.details) == 100
    assert sum(len(problem.field) + len(problem.reason) for problem in caught.value.details) < 30_000
    assert "secret" not in repr(caught.value.details)


def test_deep_json_ends_in_an_error_and_not_in_a_crash() -> None:
    deep: Any = {}
    for _ in range(sys.getrecursionlimit() * 2):
        deep = {"prompt": deep}
    with pytest.raises(InvalidInputError):
        parse_input(deep)


def test_defaults_and_spaces() -> None:
    given = parse_input({"prompt": "  a cat \n"})
    assert given.prompt == "a cat"
    assert (given.num_images, given.strict, given.seed, given.negative_prompt) == (1, False, None, None)
    assert given.ignored_fields() == []
    assert parse_input({"prompt": "a" * 1000 + " "}).prompt == "a" * 1000


def test_ignored_fields() -> None:
    sent = {"prompt": "a", "strength": 0.0, "refiner_inference_steps": 0, "high_noise_frac": 0.8}
    assert parse_input(sent).ignored_fields() == ["strength", "refiner_inference_steps", "high_noise_frac"]


def test_wire_types_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parse_input({"prompt": "a"}).prompt = "b"  # type: ignore[misc]


REQUEST_GOOD: list[dict[str, Any]] = [
    *({}, {"webhook": None}, {"webhook": "http://a"}, {"webhook": "x" * 2048}, {"s3Config": S3}, {"s3Config": None}),
    *({"policy": {"executionTimeout": low}} for low in (5_000, 7 * DAY_MS)),
    *({"policy": {"ttl": low}} for low in (10_000, 7 * DAY_MS)),
    *({"policy": {"lowPriority": True}}, {"policy": {}}),
    *(
        {"s3Config": S3 | change}
        for change in ({"bucketName": "a" * 63}, {"bucketName": "a.b-c"}, {"accessId": "x" * 256})
    ),
]
REQUEST_BAD: list[tuple[dict[str, Any], str]] = [
    *(({"webhook": bad}, "webhook") for bad in ("", "http://", "x" * 2049, 5, "http://a\0b", "http://a\x7f")),
    *(
        ({"policy": {"executionTimeout": bad}}, "policy.executionTimeout")
        for bad in (4_999, 7 * DAY_MS + 1, True, "9000", 6e3)
    ),
    *(({"policy": {"ttl": bad}}, "policy.ttl") for bad in (9_999, 7 * DAY_MS + 1, True, NAN)),
    *(({"policy": {"lowPriority": bad}}, "policy.lowPriority") for bad in (1, "yes", None)),
    *(({"policy": {"priority": 1}}, "policy.priority"), ({"policy": []}, "policy"), ({"extra": 1}, "extra")),
    *(({"input": bad}, "input") for bad in (None, ["a"], "a")),
    *(({"input": {"prompt": ""}}, "input.prompt"), ({"input": {"prompt": "a", "seed": -1}}, "input.seed")),
    *(
        ({"s3Config": S3 | {"bucketName": bad}}, "s3Config.bucketName")
        for bad in ("ab", "a" * 64, "A_b", "../..", "-ab", "a/b")
    ),
    *(({"s3Config": S3 | {"endpointUrl": bad}}, "s3Config.endpointUrl") for bad in ("", "x" * 2049, 5)),
    *(({"s3Config": S3 | {"accessId": bad}}, "s3Config.accessId") for bad in ("", "x" * 257)),
    *(({"s3Config": S3 | {"accessSecret": bad}}, "s3Config.accessSecret") for bad in ("", "x" * 257)),
    *(({"s3Config": S3 | {"region": "x"}}, "s3Config.region"), ({"s3Config": {}}, "s3Config.accessId")),
]


@pytest.mark.parametrize("body", REQUEST_GOOD)
def test_request_good(body: dict[str, Any]) -> None:
    JobRequest.model_validate({"input": {"prompt": "a"}, **body})


@pytest.mark.parametrize(("body", "field"), REQUEST_BAD)
def test_request_bad(body: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate({"input": {"prompt": "a"}, **body})
    error = invalid_input(caught.value)
    assert error.details[0].field == field
    assert "hush" not in error.message


def test_secrets_stay_out_of_repr() -> None:
    assert "hush" not in repr(S3Config.model_validate(S3))


def test_policy_defaults() -> None:
    assert Policy() == Policy(executionTimeout=600_000, lowPriority=False, ttl=DAY_MS)


def test_states() -> None:
    terminal = {state for state in JobState if state.terminal}
    assert terminal == {JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.TIMED_OUT}
    assert json.dumps(JobState.IN_QUEUE) == '"IN_QUEUE"'


def test_answer_leaves_absent_keys_out() -> None:
    answer = JobAnswer.model_validate({"id": "1", "status": "IN_QUEUE", "somethingNew": 1})
    assert answer.to_json() == {"id": "1", "status": "IN_QUEUE"}


@pytest.mark.parametrize("kind", [JobInput, JobRequest, Policy, S3Config])
def test_every_type_refuses_unknown_fields(kind: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        kind.model_validate({"unknown_field": 1})
