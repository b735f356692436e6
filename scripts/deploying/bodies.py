"""Bodies of RunPod's REST API v2: what a deployment looks like there, and what differs from what is there.

Shapes after https://docs.runpod.io/api-reference-v2 (CreateTemplateRequest, UpdateTemplateRequest,
CreateEndpointRequest, UpdateEndpointRequest). Sizes in GB, idle timeouts in seconds, execution timeouts in
milliseconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scripts.deploying.config import Deployment
    from scripts.deploying.gpus import Selection

Body = dict[str, Any]

CONTAINER = ("image", "args", "disk", "env", "ports", "registry")


def container(wanted: Deployment) -> Body:
    """What template and endpoint have in common."""
    ports = [f"{wanted.environment['PORT']}/http"] if wanted.load_balancing else []
    return {
        "image": wanted.image,
        "args": wanted.command,
        "disk": wanted.container_disk_gb,
        "env": wanted.environment,
        "ports": ports,
        "registry": wanted.registry,
    }


def template(wanted: Deployment) -> Body:
    """The body that creates the template; SSH and Jupyter are on unless they are refused."""
    return {
        "name": wanted.name,
        **container(wanted),
        "serverless": True,
        "startSsh": False,
        "startJupyter": False,
    }


def endpoint_kind(wanted: Deployment) -> str:
    """`type` in the API."""
    return "LOAD_BALANCER" if wanted.load_balancing else "QUEUE"


def endpoint(wanted: Deployment, selection: Selection, volume: str | None) -> Body:
    """What an endpoint shall be, beside its container.

    Args:
        wanted: the deployment.
        selection: its GPU types as pools.
        volume: a network volume's id.

    """
    scaling: Body = {"type": "QUEUE_DELAY", "queueDelay": wanted.queue_delay_s}
    if wanted.load_balancing:
        scaling = {"type": "REQUEST_COUNT", "requestCount": wanted.requests_per_worker}
    return {
        "name": wanted.name,
        "gpu": _gpu(wanted, selection),
        "workers": {"min": wanted.workers_min, "max": wanted.workers_max, "idleTimeout": wanted.idle_timeout_s},
        "scaling": scaling,
        "dataCenterIds": list(wanted.data_centers),
        "networkVolumes": [volume] if volume else [],
        "timeout": wanted.execution_timeout_s * 1000,
        "flashboot": "FLASHBOOT" if wanted.flashboot else "OFF",
    }


def _gpu(wanted: Deployment, selection: Selection) -> Body:
    body: Body = {"pools": list(selection.pools), "count": wanted.gpu_count}
    if selection.excluded:
        body["excludedTypes"] = list(selection.excluded)
    if wanted.min_cuda:
        body["minCudaVersion"] = wanted.min_cuda
    return body


def changes(wanted: Mapping[str, Any], current: Mapping[str, Any]) -> Body:
    """The part of `wanted` that `current` does not already hold. Groups are sent whole: RunPod replaces some so."""
    found = {name: value for name, value in wanted.items() if not COMPARED.get(name, _same)(current.get(name), value)}
    if "gpu" in found and "minCudaVersion" not in found["gpu"] and (current.get("gpu") or {}).get("minCudaVersion"):
        found["gpu"] = {**found["gpu"], "minCudaVersion": ""}  # the API's way to take a floor away
    return found


def _same(current: Any, wanted: Any) -> bool:
    """Equal, where RunPod leaves out what is empty or answers it with null."""
    return bool(current == wanted or (not current and wanted in (None, "", [], {})))


def _includes(current: Any, wanted: Body) -> bool:
    return all((current or {}).get(name) == value for name, value in wanted.items())


def _same_gpu(current: Any, wanted: Body) -> bool:
    given = current or {}
    lists = all(sorted(given.get(name) or []) == sorted(wanted.get(name, [])) for name in ("pools", "excludedTypes"))
    return (
        lists
        and given.get("count") == wanted["count"]
        and _same(given.get("minCudaVersion"), wanted.get("minCudaVersion"))
    )


COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {"gpu": _same_gpu, "workers": _includes, "scaling": _includes}
"""How groups are compared; everything else by its value."""
