"""The bodies of RunPod's management API as its published schema has them (api-reference-v2/openapi.json)."""

# ruff: noqa: N815 - the fields are called so on the wire

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Cuda = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")]
NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Container(Strict):
    args: str | None = None
    disk: int | None = Field(None, ge=1)
    env: dict[str, str] | None = None
    image: str | None = None
    ports: list[str] | None = None
    registry: str | None = None


class PersistentMount(Strict):
    size: int = Field(ge=10)
    path: str


class Mounts(Strict):
    persistent: PersistentMount | None = None


class TemplateFields(Container):
    allowedCudaVersions: list[Cuda] | None = None
    category: Literal["CPU", "NVIDIA", "AMD"] = "NVIDIA"
    mounts: Mounts | None = None
    public: bool = False
    serverless: bool = False
    startJupyter: bool = True
    startSsh: bool = True


class CreateTemplate(TemplateFields):
    name: NonEmpty
    image: str


class UpdateTemplate(TemplateFields):
    name: NonEmpty | None = None


class Gpu(Strict):
    pools: list[str] | None = Field(None, min_length=1)
    excludedTypes: list[str] | None = None
    count: int = Field(1, ge=1)
    allowedCudaVersions: list[Cuda] | None = None

    @model_validator(mode="after")
    def pools_and_exclusions_are_one(self) -> Gpu:
        if self.excludedTypes and not self.pools:
            raise ValueError("excludedTypes needs pools")
        return self


class CreateGpu(Gpu):
    pools: list[str] = Field(min_length=1)
    minCudaVersion: Cuda | None = None


class UpdateGpu(Gpu):
    minCudaVersion: Annotated[str, StringConstraints(pattern=r"^$|^\d+\.\d+$")] | None = None


class Workers(Strict):
    min: int | None = Field(None, ge=0)
    max: int | None = Field(None, ge=0)
    idleTimeout: int | None = Field(None, ge=1, le=3600)


class QueueDelay(Strict):
    type: Literal["QUEUE_DELAY"]
    queueDelay: float = Field(ge=0.5)


class RequestCount(Strict):
    type: Literal["REQUEST_COUNT"]
    requestCount: int = Field(ge=1)


Scaling = Annotated[QueueDelay | RequestCount, Field(discriminator="type")]


class EndpointFields(Container):
    dataCenterIds: list[str] | None = None
    flashboot: Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"] | None = None
    networkVolumes: list[str] | None = None
    templateId: NonEmpty | None = None
    timeout: int | None = None
    workers: Workers | None = None


class CreateEndpoint(EndpointFields):
    name: NonEmpty
    type: Literal["QUEUE", "LOAD_BALANCER"]
    scaling: Scaling
    gpu: CreateGpu | None = None

    @model_validator(mode="after")
    def rules_between_fields(self) -> CreateEndpoint:
        if self.image is None and self.templateId is None:
            raise ValueError("image is required unless templateId is set")
        if self.type == "LOAD_BALANCER" and self.scaling.type != "REQUEST_COUNT":
            raise ValueError("a load balancer scales on REQUEST_COUNT")
        return self


class UpdateEndpoint(EndpointFields):
    name: NonEmpty | None = None
    scaling: Scaling | None = None
    gpu: UpdateGpu | None = None


class PodGpu(Strict):
    id: str
    count: int = Field(1, ge=1)
    allowedCudaVersions: list[Cuda] | None = None
    minCudaVersion: Cuda | None = None


class NetworkMount(Strict):
    volumeId: str
    path: str


class PodMounts(Mounts):
    network: list[NetworkMount] | None = Field(None, min_length=1, max_length=1)


class CreatePod(Container):
    name: NonEmpty
    cloud: Literal["SECURE", "COMMUNITY"] = "SECURE"
    dataCenterIds: list[str] | None = None
    globalNetworking: bool = False
    gpu: PodGpu
    mounts: PodMounts | None = None
    startJupyter: bool = False
    startSsh: bool = False
    templateId: NonEmpty | None = None

    @model_validator(mode="after")
    def an_image_from_somewhere(self) -> CreatePod:
        if self.image is None and self.templateId is None:
            raise ValueError("image is required unless templateId is set")
        return self


class SaveEndpoint(Strict):
    """GraphQL's EndpointInput: required fields as documented, the rest as RunPod's CLI sends them."""

    id: str
    name: str
    templateId: str
    gpuIds: str
    type: Literal["QB", "LB"]
    gpuCount: int
    instanceIds: list[str] = []
    workersMin: int
    workersMax: int
    locations: str = ""
    networkVolumeId: str = ""
    networkVolumeIds: list[dict[Literal["networkVolumeId"], str]]
    idleTimeout: int
    scalerType: str
    scalerValue: float
    executionTimeoutMs: int
    minCudaVersion: str = ""
    flashBootType: Literal["OFF", "FLASHBOOT", "PRIORITY_FLASHBOOT"]
    modelReferences: list[Annotated[str, StringConstraints(pattern=r"^https://huggingface\.co/[^/]+/[^/:]+:.+$")]]
