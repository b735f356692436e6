from __future__ import annotations

import json
import pickle
from pathlib import Path

from compositor.compose.errors import ComposeError
from compositor.compose.job import ComposeJob
from compositor.design import Design, OutputSize


def test_a_job_survives_the_wire() -> None:
    design = Design.model_validate(
        {"placement": {"box": {"x": 1, "y": 2, "width": 30, "height": 40}}, "layer": "over"}
    )
    size = OutputSize.model_construct(name="original", width=9, height=9000)
    job = ComposeJob(Path("/a"), Path("/b"), True, design, size, {"title": "Ä\u2028"}, {"ast_x": Path("/c")})
    assert ComposeJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_an_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ComposeError("decoder_died", "It died.")))
    assert (error.code, error.message, error.retryable) == ("decoder_died", "It died.", True)
    assert not ComposeError("not_an_image", "No.").retryable
