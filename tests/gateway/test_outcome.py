from __future__ import annotations

import pytest

from gateway.outcome import failure_of
from models.wire import JobAnswer, JobState


@pytest.mark.parametrize(
    ("error", "status", "code", "details"),
    [
        ("invalid_input: input.width: too large", 422, "invalid_input", {"width": "too large"}),
        (
            "invalid_input: loras.0.name: no LoRA is called 'x'; input.hires.steps: at least 1",
            422,
            "invalid_input",
            {"loras.0.name": "no LoRA is called 'x'", "hires.steps": "at least 1"},
        ),
        (
            "invalid_input: steps: steps and num_inference_steps are names of one field; send one of them",
            422,
            "invalid_input",
            {"steps": "steps and num_inference_steps are names of one field; send one of them"},
        ),
        (
            "invalid_input: cfg_scale: too high; init_image: cannot be fetched: the address answers 404",
            422,
            "invalid_input",
            {"cfg_scale": "too high", "init_image": "cannot be fetched: the address answers 404"},
        ),
        ("invalid_input: colour: what is that", 422, "invalid_input", {}),
        ("unknown_scheduler: no scheduler 'x'", 422, "unknown_scheduler", {"scheduler": "no scheduler 'x'"}),
        ("unknown_lora: no LoRA 'x'", 422, "unknown_lora", {"loras": "no LoRA 'x'"}),
        ("lora_error: 'x' is damaged", 422, "lora_error", {"loras": "'x' is damaged"}),
        ("unknown_checkpoint: no 'x'", 422, "unknown_checkpoint", {"checkpoint": "no 'x'"}),
        ("checkpoint_changed: 'x' is another", 422, "checkpoint_changed", {"checkpoint": "'x' is another"}),
        ("checkpoint_error: 'x' is incomplete", 502, "checkpoint_error", {}),
        ("safety_hook_failed: the pictures are not shown", 502, "safety_hook_failed", {}),
        ("watermark_hook_failed: the pictures are not shown", 502, "watermark_hook_failed", {}),
        ("deadline_missed: drawing did not begin within 5 s", 504, "deadline_missed", {}),
    ],
)
def test_a_failed_job_is_told_by_its_code(error: str, status: int, code: str, details: dict[str, str]) -> None:
    failure = failure_of(JobAnswer(id="x", status=JobState.FAILED, error=error))
    assert failure is not None
    assert (failure.status, failure.code, failure.message) == (status, code, error.partition(": ")[2])
    assert {problem.field: problem.reason for problem in failure.details} == details
    assert ("Retry-After" in failure.headers) == (status >= 500)


@pytest.mark.parametrize("error", [None, "", "Traceback (most recent call last):\n  File x", "{}", "x" * 5000])
def test_what_is_no_plain_error_is_not_shown(error: str | None) -> None:
    failure = failure_of(JobAnswer(id="x", status=JobState.FAILED, error=error))
    assert failure is not None
    assert failure.code == "backend_failed"
    assert failure.message == failure.default_message


def test_a_completed_job_has_not_failed() -> None:
    assert failure_of(JobAnswer(id="x", status=JobState.COMPLETED, output={})) is None
