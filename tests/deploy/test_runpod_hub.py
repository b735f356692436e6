"""The files of RunPod's Hub: the documented fields and no others, and what they ask for is what the worker can do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter

from inference.runpod_worker import Worker
from inference.settings import InferenceSettings
from scripts.deploying.gpus import DOCUMENTED
from tests.support.fake_engine import FakeEngine

if TYPE_CHECKING:
    import pytest

FOLDER = Path(__file__).parents[2] / ".runpod"
Cuda = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Option(Strict):
    label: str
    value: str


class Input(Strict):
    name: str
    type: Literal["string", "number", "boolean", "huggingface"]
    description: str
    default: str | int | float | bool | None = None
    options: list[Option] | None = None
    min: float | None = None
    max: float | None = None
    required: bool = False
    advanced: bool = False
    trueValue: str | None = None  # noqa: N815 - the Hub's name
    falseValue: str | None = None  # noqa: N815 - the Hub's name


class StaticVariable(Strict):
    key: str
    value: str


class AskedVariable(Strict):
    key: str
    input: Input


class Preset(Strict):
    name: str
    defaults: dict[str, str | int | bool]


class HubConfig(Strict):
    runsOn: Literal["GPU"]  # noqa: N815 - the Hub's names, here and below
    endpointType: Literal["LB"] | None = None  # noqa: N815
    containerDiskInGb: int  # noqa: N815
    gpuCount: int  # noqa: N815
    gpuIds: str  # noqa: N815
    allowedCudaVersions: list[Cuda]  # noqa: N815
    env: list[StaticVariable | AskedVariable]
    presets: list[Preset]


class Hub(Strict):
    title: str
    description: str
    type: Literal["serverless"]
    category: Literal["audio", "embedding", "language", "video", "image"]
    iconUrl: str | None = None  # noqa: N815
    config: HubConfig


class Case(Strict):
    name: str
    input: dict[str, Any]
    timeout: int = Field(ge=1000)


class CasesConfig(Strict):
    gpuTypeId: str  # noqa: N815
    gpuCount: int  # noqa: N815
    env: list[StaticVariable]
    allowedCudaVersions: list[Cuda]  # noqa: N815


class Cases(Strict):
    tests: list[Case] = Field(min_length=1)
    config: CasesConfig


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def accepted(environment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> InferenceSettings:
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    return InferenceSettings()


def test_hub_json_has_the_hubs_fields_and_the_workers_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = TypeAdapter(Hub).validate_python(read("hub.json"))
    assert set(hub.config.gpuIds.split(",")) <= set(DOCUMENTED)
    defaults = {item.key: item.input.default for item in hub.config.env if isinstance(item, AskedVariable)}
    for values in (defaults, *(preset.defaults for preset in hub.config.presets)):
        settings = accepted({name: value for name, value in values.items() if value is not None}, monkeypatch)
        assert settings.checkpoint == values["IGEN_CHECKPOINT"]
    for preset in hub.config.presets:
        assert set(preset.defaults) <= set(defaults)


def test_the_hub_finds_what_it_wants_beside_them() -> None:
    assert (FOLDER / "handler.py").is_file()
    assert (FOLDER / "Dockerfile").resolve() == FOLDER.parent / "Dockerfile.gpu"
    assert (FOLDER.parent / "README.md").is_file()


async def test_every_case_of_tests_json_is_drawn_by_the_worker() -> None:
    cases = TypeAdapter(Cases).validate_python(read("tests.json"))
    known = {gpu for types in DOCUMENTED.values() for gpu in types}
    assert cases.config.gpuTypeId in known
    engine = FakeEngine()
    worker = Worker(engine, InferenceSettings(), None)
    for case in cases.tests:
        output = await worker.handle({"id": case.name, "input": case.input})
        assert len(output["images"]) == case.input.get("num_images", 1)
    engine.close()
