from __future__ import annotations

import json
from typing import TYPE_CHECKING

from models.wire import JobInput, names_of

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway


async def test_the_document_has_every_field_under_every_name(gateway: RunningGateway) -> None:
    document = (await gateway.request("GET", "/openapi.json", key=None)).json
    post = document["paths"]["/api/generate/"]["post"]
    properties = post["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert set(properties) == {name for field in JobInput.model_fields for name in names_of(field)}
    assert "Another name of `num_inference_steps`" in properties["steps"]["description"]
    assert properties["steps"]["anyOf"] == properties["num_inference_steps"]["anyOf"]
    answers = document["components"]["schemas"]["GeneratedAnswer"]["properties"]
    assert {"flagged", "output_format", "notes", "receipt"} <= set(answers)
    assert "202" in post["responses"]
    assert {"/api/generations/{generation_id}/events", "/api/verify"} <= set(document["paths"])


async def test_every_reference_leads_somewhere(gateway: RunningGateway) -> None:
    document = (await gateway.request("GET", "/openapi.json", key=None)).json
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    for reference in references:
        found = document
        for name in reference.removeprefix("#/").split("/"):
            assert name in found, reference
            found = found[name]
