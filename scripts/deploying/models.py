"""An endpoint's cached model. REST v2 has no field for it; GraphQL's `saveEndpoint` has, and replaces all of it.

So the endpoint is read first and everything is sent back as it was, but for the model: what RunPod's own CLI does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scripts.deploying.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.deploying.api import Api
    from scripts.deploying.config import Model

KEPT = (
    *("id", "name", "templateId", "gpuIds", "gpuCount", "instanceIds", "workersMin", "workersMax", "locations"),
    *("networkVolumeId", "idleTimeout", "scalerType", "scalerValue", "executionTimeoutMs", "minCudaVersion"),
    "flashBootType",
)
FIELDS = " ".join((*KEPT, "networkVolumeIds { networkVolumeId }", "modelReferences"))
READ = f"query {{ myself {{ endpoints {{ {FIELDS} }} }} }}"
SAVE = "mutation SaveEndpoint($input: EndpointInput!) { saveEndpoint(input: $input) { id modelReferences } }"
BY_HAND = "The endpoint itself is up to date; the model can be set by hand: Manage, Edit Endpoint, Model."


async def set_model(api: Api, endpoint_id: str, model: Model | None, *, load_balancing: bool) -> str | None:
    """Give the endpoint its cached model, or none; the new value as RunPod knows it, None where it already was so.

    Raises:
        DeployError: RunPod did not take it.

    """
    current = await _read(api, endpoint_id)
    urls = current.get("modelReferences") or []
    if (model is None and not urls) or (model is not None and len(urls) == 1 and model.is_set_by(urls[0])):
        return None
    kept = {name: current[name] for name in KEPT if current.get(name) is not None}
    wanted = {
        **kept,
        "type": "LB" if load_balancing else "QB",
        "networkVolumeIds": [
            {"networkVolumeId": item["networkVolumeId"]} for item in current["networkVolumeIds"] or []
        ],
        "modelReferences": [model.url] if model else [],
    }
    answer = await _ask(api, {"query": SAVE, "variables": {"input": wanted}})
    saved = (answer.get("saveEndpoint") or {}).get("modelReferences") or []
    if model is not None and not any(model.is_set_by(str(url)) for url in saved):
        raise DeployError(f"RunPod did not keep the cached model {model.url}. {BY_HAND}")
    return str(saved[0]) if saved else ""


async def _read(api: Api, endpoint_id: str) -> Mapping[str, Any]:
    answer = await _ask(api, {"query": READ})
    for endpoint in (answer.get("myself") or {}).get("endpoints") or []:
        if endpoint["id"] == endpoint_id:
            return dict(endpoint)
    raise DeployError(f"RunPod's GraphQL API does not list endpoint {endpoint_id} yet. Run the same command again.")


async def _ask(api: Api, question: Mapping[str, Any]) -> dict[str, Any]:
    try:
        answer = await api.call("POST", "/graphql", question)
    except DeployError as problem:
        raise DeployError(f"The cached model could not be set. {problem} {BY_HAND}") from None
    if errors := answer.get("errors"):
        words = "; ".join(str(item.get("message", "")) for item in errors if isinstance(item, dict))
        raise DeployError(f"The cached model could not be set. RunPod said: {words}. {BY_HAND}")
    data = answer.get("data")
    return data if isinstance(data, dict) else {}
