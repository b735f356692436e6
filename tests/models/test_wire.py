"""The bounds of every field of the wire, at them and just outside, and the error that names each."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from models.errors import InvalidInputError
from models.wire import (
    HiresInput,
    JobAnswer,
    JobInput,
    JobRequest,
    JobState,
    LoraInput,
    Policy,
    S3Config,
    invalid_input,
    names_of,
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
    *(("image", "https://x/"), ("image", "https://x/" + "x" * 4086), ("image", "x" * 10_000), ("image", None)),
    *(("mask", "data:image/png;base64,AAAA"), ("mask", None), ("strength", 0), ("strength", 1.0)),
    *(
        ("refiner_inference_steps", 0),
        ("refiner_inference_steps", 150),
        ("high_noise_frac", 0.0),
        ("high_noise_frac", 1),
    ),
    *(
        ("refiner", "r"),
        ("refiner", None),
        ("refiner_negative_prompt", ""),
        ("checkpoint", "a b"),
        ("checkpoint", None),
    ),
    *(
        ("style", ()),
        ("style", ("a",)),
        ("style", ("a",) * 8),
        ("prompt_syntax", "a1111"),
        ("prompt_syntax", "plain"),
    ),
    *(("loras", ()), ("loras", (LoraInput(name="a", scale=-4), LoraInput(name="b", scale=4)))),
    *(("hires", None), ("hires", HiresInput(scale=4.0)), ("hires", HiresInput(width=64, height=4096, steps=1))),
    *(("output_format", "png"), ("output_format", "jpeg"), ("output_format", "webp"), ("metadata", False)),
    *(("quality", 1), ("quality", 100), ("quality", None), ("preview_every", 0), ("preview_every", 150)),
    *(("deadline_s", 0.001), ("deadline_s", 604_800), ("deadline_s", None)),
]
BAD: list[tuple[str, Any]] = [
    *(("prompt", bad) for bad in ("", "  \n ", "x" * 1001, None, 5, True, ["a"], {"a": 1}, 1.5)),
    *(("prompt", f"a{char}b") for char in ("\0", "\x07", "\x1b[31m", "\x1f", "\x7f", "\x85", "\x9b", "\ud800")),
    *(("negative_prompt", bad) for bad in ("x" * 1001, "a\0", 5, False, ["a"])),
    *(("width", bad) for bad in (56, 63, 65, 1001, 4097, 4104, 0, -64, 10**30, True, "512", 512.0, NAN, [64])),
    *(("height", bad) for bad in (56, 63, 65, 4104, 0, -64, True, "512", 512.5, INFINITY, {"a": 1})),
    *(("num_inference_steps", bad) for bad in (0, -1, 151, 10**20, True, "30", 30.0, NAN)),
    *(("guidance_scale", bad) for bad in (-0.001, 50.001, NAN, INFINITY, -INFINITY, True, "7.5", 10**400, [7])),
    *(("seed", bad) for bad in (-2, 2**32, 2**64, 10**400, -(10**400), True, "1", 1.0, NAN)),
    *(("num_images", bad) for bad in (0, 17, -1, True, "2", 2.0, None)),
    *(("scheduler", bad) for bad in ("", "x" * 65, 5, True, "a\0b")),
    *(("strict", bad) for bad in (0, 1, "true", None)),
    *(("request_id", bad) for bad in ("", "x" * 129, "-a", ".a", "a/b", "a b", "a\n", "ä", 5, "../x")),
    *(("image", bad) for bad in ("", " ", "https://" + "x" * 4089, "HTTPS://a\0", 5, [1])),
    *(("mask", bad) for bad in ("", "http://" + "x" * 4090, 5)),
    *(("strength", bad) for bad in (-0.01, 1.01, NAN, True, "0.5")),
    *(("refiner_inference_steps", bad) for bad in (-1, 151, True, 1.0)),
    *(("high_noise_frac", bad) for bad in (-0.01, 1.01, INFINITY, True, "0.5")),
    *(("refiner", bad) for bad in ("", 5, "x" * 201)),
    *(("refiner_negative_prompt", bad) for bad in (5, "x" * 1001, "a\0")),
    *(("checkpoint", bad) for bad in ("", 5, "x" * 201, "a\0")),
    *(("style", bad) for bad in (5, ["a"] * 9, {"a": 1})),
    *(("prompt_syntax", bad) for bad in ("compel", None, 1)),
    *(("loras", bad) for bad in ([{"name": "a"}] * 2, [{"name": str(i)} for i in range(9)], "a", 5)),
    *(("hires", bad) for bad in (True, 2, [2], {"scale": 2, "width": 64}, {"scale": 2.0, "height": 64})),
    *(("output_format", bad) for bad in ("gif", "PNG", None, 1)),
    *(("quality", bad) for bad in (0, 101, True, "90", 9.0)),
    *(("metadata", bad) for bad in (0, "false", None)),
    *(("preview_every", bad) for bad in (-1, 151, True, "1", None)),
    *(("deadline_s", bad) for bad in (0, -1, 604_801, NAN, INFINITY, True, "5")),
    *(("Prompt", "a"), ("step", 3), ("num", 1), ("negative_promt", "typo")),
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
        parse_input({"width": 1, "seed": -2, "nonsense": 1})
    assert [problem.field for problem in caught.value.details] == ["prompt", "width", "seed", "nonsense"]


def test_any_seed_is_no_seed() -> None:
    """As clients of AUTOMATIC1111 send it; whoever keeps the job draws the seed once, as for an absent one."""
    assert parse_input({"prompt": "a", "seed": -1}).seed is None


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


NAMES = [(field, name) for field in JobInput.model_fields for name in names_of(field)[1:]]
VALUES: dict[str, Any] = {
    "style": ["anime"],
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
    "num_images": 2,
    "image": "AAAA",
    "mask": "AAAA",
    "strength": 0.4,
    "refiner_inference_steps": 7,
    "high_noise_frac": 0.5,
    "output_format": "webp",
    "quality": 80,
}


@pytest.mark.parametrize(("field", "name"), NAMES)
def test_peers_names_mean_the_field(field: str, name: str) -> None:
    value = VALUES.get(field, "euler")
    assert parse_input({"prompt": "a", name: value}) == parse_input({"prompt": "a", field: value})
    assert parse_input({"prompt": "a", name: None, field: value}) == parse_input({"prompt": "a", field: value})


@pytest.mark.parametrize(("field", "name"), NAMES)
def test_two_names_of_one_field_are_refused_and_both_named(field: str, name: str) -> None:
    value = VALUES.get(field, "euler")
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"prompt": "", field: value, name: value})
    assert {problem.field for problem in caught.value.details} == {field, name, "prompt"}
    assert f"{field} and {name} are names of one field" in caught.value.message


@pytest.mark.parametrize(
    ("sampler", "spacing", "expected"),
    [
        ("DPM++ 2M", "Karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Automatic", "DPM++ 2M Karras"),
        ("DPM++ 2M Karras", "karras", "DPM++ 2M Karras"),
        ("DPM++ 2M", "Uniform", "DPM++ 2M"),
        ("Euler a", "Automatic", "Euler a"),
        ("Euler a", None, "Euler a"),
    ],
)
def test_automatic1111s_sampler_and_spacing_are_one_scheduler(sampler: str, spacing: str, expected: str) -> None:
    assert parse_input({"prompt": "a", "sampler_name": sampler, "scheduler": spacing}).scheduler == expected


def test_a_wrong_value_is_reported_under_the_name_that_was_sent() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"prompt": "a", "steps": 0, "cfg_scale": 99})
    assert [problem.field for problem in caught.value.details] == ["steps", "cfg_scale"]


@pytest.mark.parametrize(
    ("hires", "field"),
    [
        ({"scale": 1.0}, "hires.scale"),
        ({"scale": 4.01}, "hires.scale"),
        ({"width": 100}, "hires.width"),
        ({"steps": 0}, "hires.steps"),
        ({"strength": 0.0}, "hires.strength"),
        ({"upscaler": "esrgan"}, "hires.upscaler"),
        ({"size": 2}, "hires.size"),
    ],
)
def test_a_wrong_field_of_the_hires_pass_is_named(hires: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"prompt": "a", "hires": hires})
    assert [problem.field for problem in caught.value.details] == [field]


@pytest.mark.parametrize("scale", [4.1, -4.1, "1", True, NAN])
def test_a_loras_scale_is_bounded(scale: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_input({"prompt": "a", "loras": [{"name": "a"}, {"name": "b", "scale": scale}]})
    assert [problem.field for problem in caught.value.details] == ["loras.1.scale"]


def test_a_request_of_worker_sdxl_stays_valid() -> None:
    sent = {
        "prompt": "a cat",
        "negative_prompt": None,
        "height": 1024,
        "width": 1024,
        "num_inference_steps": 25,
        "refiner_inference_steps": 50,
        "guidance_scale": 7.5,
        "strength": 0.3,
        "seed": None,
        "scheduler": "DDIM",
        "num_images": 1,
        "image_url": None,
        "high_noise_frac": None,
    }
    request = JobRequest.model_validate_json(json.dumps({"input": sent}))
    assert request.input.ignored_fields() == ["strength", "refiner_inference_steps"]


def test_fields_with_an_image_a_refiner_and_a_lossy_format_are_not_ignored() -> None:
    sent = {"prompt": "a", "image": "AAAA", "strength": 0.3, "refiner": "r", "high_noise_frac": 0.5, "quality": 5}
    assert parse_input({**sent, "format": "jpg"}).ignored_fields() == []
    assert parse_input(sent).ignored_fields() == ["quality"]


def test_what_was_dumped_can_be_read_again() -> None:
    sent = parse_input({"prompt": "a", "styles": "x", "steps": 3, "loras": [{"name": "l"}], "hires": {"scale": 2}})
    assert JobInput(**sent.model_dump(mode="json")) == sent


def test_a_picture_in_the_request_stays_out_of_repr() -> None:
    assert "AAAA" not in repr(parse_input({"prompt": "a", "image": "AAAA", "mask": "AAAA"}))


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
    *(({"input": {"prompt": ""}}, "input.prompt"), ({"input": {"prompt": "a", "seed": -2}}, "input.seed")),
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
