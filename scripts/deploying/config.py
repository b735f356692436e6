"""What is to be deployed: `runpod.toml` in RunPod's own format, and the options of the command line over it."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path  # noqa: TC003 - pydantic and typer need it at run time
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from scripts.deploying.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

HUB = "https://huggingface.co"
MODEL = re.compile(r"(?:https://huggingface\.co/)?(?P<repo>[\w.-]+/[\w.-]+?)(?::(?P<ref>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)
REFERENCE = re.compile(r"\{\{.*\}\}")
CUDA = re.compile(r"\d+\.\d+")
IMAGE_CUDA = "12.8"
"""What Dockerfile.gpu is built for: on a host with an older driver its workers cannot draw."""

HTTP_PORT = 8001
WORKER = "worker"  # arguments of the image's entry, inference/start.py
SERVER = "server"

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=3, max_length=190)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Endpoint(_Table):
    """`[endpoint]`."""

    active_workers: int = Field(0, ge=0)
    max_workers: int = Field(3, ge=0)
    flashboot: bool = True
    idle_timeout: int = Field(5, ge=1, le=3600)
    model_refs: list[str] = Field(default_factory=list, max_length=1)


class Project(_Table):
    """`[project]`."""

    uuid: str
    base_image: str
    gpu_types: list[str] = Field(min_length=1)
    gpu_count: int = Field(1, ge=1)
    volume_mount_path: str = "/runpod-volume"
    ports: str = ""
    container_disk_size_gb: int = Field(20, ge=1)
    env_vars: dict[str, str] = Field(default_factory=dict)


class Runtime(_Table):
    """`[runtime]`: read by `runpodctl project` alone."""

    python_version: str
    handler_path: str
    requirements_path: str


class RunpodToml(_Table):
    """The whole file; unknown keys are refused, so that a typing error does not pass for a setting."""

    name: Name
    project: Project
    endpoint: Endpoint = Field(default_factory=Endpoint)
    runtime: Runtime | None = None


@dataclass(frozen=True)
class Model:
    """A Hugging Face repository that RunPod keeps on its hosts."""

    repo: str
    ref: str = "main"

    @property
    def url(self) -> str:
        """As RunPod's API takes and answers it."""
        return f"{HUB}/{self.repo}:{self.ref}"

    @property
    def variables(self) -> dict[str, str]:
        """What makes the worker draw with it; RunPod writes no `refs/main` for a commit, so that is named as well."""
        is_commit = COMMIT.fullmatch(self.ref) is not None
        return {"IGEN_CHECKPOINT": self.repo, "IGEN_CHECKPOINT_REVISION": self.ref if is_commit else ""}

    def is_set_by(self, url: str) -> bool:
        """Whether an endpoint's model is this one. RunPod answers a branch with the commit that it resolved it to."""
        repo, _, ref = url.removeprefix(f"{HUB}/").rpartition(":")
        return repo == self.repo and (ref == self.ref or not COMMIT.fullmatch(self.ref))


@dataclass(frozen=True)
class Deployment:
    """One template and one endpoint, both called `name`. Times in the units that the names say."""

    name: str
    image: str
    gpu_types: tuple[str, ...]
    gpu_count: int = 1
    container_disk_gb: int = 20
    min_cuda: str | None = None
    workers_min: int = 0
    workers_max: int = 3
    idle_timeout_s: int = 5
    execution_timeout_s: int = 600
    flashboot: bool = True
    queue_delay_s: float = 4
    requests_per_worker: int = 8
    load_balancing: bool = False
    volume: str | None = None
    data_centers: tuple[str, ...] = ()
    model: Model | None = None
    registry: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    hidden: frozenset[str] = frozenset()
    """Names of variables whose values are never shown, beside those that look secret."""

    @property
    def command(self) -> str:
        """What the image is to be."""
        return SERVER if self.load_balancing else WORKER

    @property
    def environment(self) -> dict[str, str]:
        """The container's variables: those asked for, and for a load-balancing endpoint where to listen."""
        if not self.load_balancing:
            return dict(self.env)
        port = self.env.get("PORT", str(HTTP_PORT))
        defaults = {"PORT": port, "PORT_HEALTH": port, "IGEN_BIND": "0.0.0.0", "IGEN_INFERENCE_AUTH": "platform"}  # noqa: S104 - inside the container, behind RunPod's gateway
        return {**defaults, **self.env}

    @property
    def remarks(self) -> tuple[str, ...]:
        """What can be deployed but is hardly meant."""
        found = []
        _, _, tag = self.image.rpartition("/")[2].partition(":")
        if tag in ("", "latest") and "@" not in self.image:
            found.append(f"{self.image} names no version: workers keep what they pulled first under this name.")
        checkpoint = self.environment.get("IGEN_CHECKPOINT", "")
        if self.model is not None and checkpoint != self.model.repo:
            found.append(f"the cached model is {self.model.repo}, but IGEN_CHECKPOINT is '{checkpoint}'.")
        if self.workers_min:
            found.append(f"{self.workers_min} active workers cost money all day, with or without requests.")
        return tuple(found)

    @property
    def secrets(self) -> frozenset[str]:
        """Values that must not be shown. A reference to RunPod's own secret store is none."""
        return frozenset(
            value
            for name, value in self.environment.items()
            if value and (name in self.hidden or SECRET_NAME.search(name)) and not REFERENCE.fullmatch(value.strip())
        )


def read_toml(path: Path) -> RunpodToml:
    """Read and check the file.

    Raises:
        DeployError: it is missing, no TOML, or a key is wrong.

    """
    try:
        return RunpodToml.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as problem:
        raise DeployError(f"{path} cannot be read: {problem}") from None
    except tomllib.TOMLDecodeError as problem:
        raise DeployError(f"{path} is no TOML: {problem}") from None
    except ValidationError as problem:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in problem.errors())
        raise DeployError(f"{path}: {wrong}") from None


def deployment(toml: RunpodToml, **options: Any) -> Deployment:
    """The file's settings with every option that is not None over them.

    Raises:
        DeployError: the settings cannot be deployed.

    """
    refs = toml.endpoint.model_refs
    base = Deployment(
        name=toml.name,
        image=toml.project.base_image,
        gpu_types=tuple(toml.project.gpu_types),
        gpu_count=toml.project.gpu_count,
        container_disk_gb=toml.project.container_disk_size_gb,
        min_cuda=IMAGE_CUDA,
        workers_min=toml.endpoint.active_workers,
        workers_max=toml.endpoint.max_workers,
        idle_timeout_s=toml.endpoint.idle_timeout,
        flashboot=toml.endpoint.flashboot,
        model=parse_model(refs[0]) if refs else None,
        env=toml.project.env_vars,
    )
    wanted = replace(base, **{name: value for name, value in options.items() if value is not None})
    _check(wanted)
    return wanted


def _check(wanted: Deployment) -> None:
    if wanted.workers_min > wanted.workers_max:
        raise DeployError(f"{wanted.workers_min} active workers are more than the {wanted.workers_max} at most.")
    if not 5 <= wanted.execution_timeout_s <= 7 * 86_400:  # noqa: PLR2004 - RunPod's range
        raise DeployError("The execution timeout must lie between 5 seconds and 7 days.")
    if wanted.min_cuda and not CUDA.fullmatch(wanted.min_cuda):
        raise DeployError(f"'{wanted.min_cuda}' is no CUDA version: give one as {IMAGE_CUDA}, or '' for any.")
    for name in wanted.env:
        if not ENV_NAME.fullmatch(name):
            raise DeployError(f"'{name}' is no name of an environment variable.")


def check_image(image: str) -> None:
    """Refuse an image that RunPod has nowhere to pull from.

    Raises:
        DeployError: it names no registry and no account.

    """
    if "/" not in image:
        raise DeployError(
            f"RunPod cannot pull the image '{image}': push it to a registry and give its whole name, "
            "--image registry.example/account/igen-gpu:tag."
        )


def parse_model(text: str) -> Model:
    """A cached model: `org/name`, `org/name:ref`, or the same with https://huggingface.co/ before it.

    Raises:
        DeployError: it is none of these.

    """
    found = MODEL.fullmatch(text.strip())
    if found is None:
        raise DeployError(f"'{text}' is no Hugging Face model: give org/name, or org/name:commit.")
    return Model(found["repo"], found["ref"] or "main")


def parse_env(given: Iterable[str], taken: Iterable[str], here: Mapping[str, str]) -> dict[str, str]:
    """Variables of `--env NAME=VALUE` and of `--env-from NAME`, which takes the value from this environment.

    Raises:
        DeployError: there is no `=`, or the variable is not set here.

    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise DeployError(f"--env {name}: write NAME=VALUE; --env-from {name} takes the value from here.")
        found[name] = value
    for name in taken:
        if not here.get(name):
            raise DeployError(f"--env-from {name}: the variable is not set here.")
        found[name] = here[name]
    return found
