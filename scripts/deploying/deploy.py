"""Deploys: GPU types to pools, volume, template, endpoint, cached model. All is looked for by its name first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.deploying import bodies
from scripts.deploying.api import Missing
from scripts.deploying.errors import DeployError
from scripts.deploying.gpus import pools_of, select
from scripts.deploying.models import set_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scripts.deploying.api import Api
    from scripts.deploying.config import Deployment

TEMPLATES = "/v2/templates"
ENDPOINTS = "/v2/serverless"
VOLUMES = "/v2/network-volumes"
GPUS = "/v2/catalog/gpus"
OLD_FLASHBOOT = " -fb"
"""What RunPod's older APIs appended to the name of an endpoint with FlashBoot."""


@dataclass(frozen=True)
class Deployed:
    """Where the endpoint is. `changed` says what was done, in the order done; empty: all was as wanted."""

    endpoint_id: str
    request_urls: Mapping[str, str]
    changed: tuple[str, ...]


class Deployer:
    """Makes the account hold one deployment."""

    def __init__(self, api: Api, wanted: Deployment, tell: Callable[[str], None]) -> None:
        self._api = api
        self._wanted = wanted
        self._tell = tell
        self._changed: list[str] = []

    async def deploy(self) -> Deployed:
        """Create what is missing and update what differs.

        Raises:
            DeployError: in words for the operator; what was done before stays, and a second run goes on from there.

        """
        selection = select(self._wanted.gpu_types, pools_of(await self._list(GPUS, "gpus")))
        volume = await self._volume()
        before = self._one(await self._list(ENDPOINTS, "endpoints"), "endpoint")
        self._check_kind(before)
        template_id = await self._template()
        body = bodies.endpoint(self._wanted, selection, volume)
        endpoint = await self._endpoint(before, body, template_id)
        await self._model(str(endpoint["id"]), is_new=before is None)
        return Deployed(str(endpoint["id"]), endpoint.get("requestUrls") or {}, tuple(self._changed))

    async def delete(self) -> tuple[str, ...]:
        """Remove endpoint and template, where they are there; what was removed.

        Raises:
            DeployError: in words for the operator.

        """
        for path, key, noun in ((ENDPOINTS, "endpoints", "endpoint"), (TEMPLATES, "templates", "template")):
            found = self._one(await self._list(path, key), noun)
            if found is None:
                continue
            try:
                await self._api.call("DELETE", f"{path}/{found['id']}")
            except Missing:
                continue  # RunPod takes an endpoint's own template along with it
            self._note(f"{noun} {found['id']} deleted")
        return tuple(self._changed)

    async def _template(self) -> str:
        wanted = bodies.template(self._wanted)
        found = self._one(await self._list(TEMPLATES, "templates"), "template")
        if found is None:
            made = await self._api.call("POST", TEMPLATES, wanted)
            self._note(f"template {made['id']} created")
            return str(made["id"])
        if changes := bodies.changes(wanted, found):
            await self._api.call("PATCH", f"{TEMPLATES}/{found['id']}", changes)
            self._note(f"template {found['id']} updated: {', '.join(changes)}")
        return str(found["id"])

    async def _endpoint(
        self, before: Mapping[str, Any] | None, wanted: Mapping[str, Any], template_id: str
    ) -> Mapping[str, Any]:
        if before is None:
            kind = bodies.endpoint_kind(self._wanted)
            made = await self._api.call("POST", ENDPOINTS, {**wanted, "type": kind, "templateId": template_id})
            self._note(f"endpoint {made['id']} created")
            return made
        changes = bodies.changes({name: value for name, value in wanted.items() if name != "name"}, before)
        if container := bodies.changes(bodies.container(self._wanted), before):
            # an endpoint keeps no tie to its template, so the template has to be applied again
            changes["templateId"] = template_id
        if not changes:
            return before
        shown = [*container, *(name for name in changes if name != "templateId")]
        after = await self._api.call("PATCH", f"{ENDPOINTS}/{before['id']}", changes)
        self._note(f"endpoint {before['id']} updated: {', '.join(shown)}")
        return {**before, **after}

    async def _model(self, endpoint_id: str, *, is_new: bool) -> None:
        if is_new and self._wanted.model is None:
            return
        lb = self._wanted.load_balancing
        if (url := await set_model(self._api, endpoint_id, self._wanted.model, load_balancing=lb)) is not None:
            self._note(f"endpoint {endpoint_id}: cached model {url or 'taken away'}")

    async def _volume(self) -> str | None:
        if self._wanted.volume is None:
            return None
        volumes = await self._list(VOLUMES, "networkVolumes")
        found = [item for item in volumes if self._wanted.volume in (item["id"], item["name"])]
        if len(found) == 1:
            return str(found[0]["id"])
        if found:
            ids = ", ".join(str(item["id"]) for item in found)
            raise DeployError(f"There are {len(found)} network volumes '{self._wanted.volume}': give an id ({ids}).")
        known = ", ".join(f"{item['name']} ({item['id']})" for item in volumes) or "none"
        raise DeployError(f"There is no network volume '{self._wanted.volume}'. There are: {known}.")

    def _check_kind(self, found: Mapping[str, Any] | None) -> None:
        kind = bodies.endpoint_kind(self._wanted)
        if found is not None and found.get("type", kind) != kind:
            raise DeployError(
                f"Endpoint '{self._wanted.name}' ({found['id']}) is of type {found['type']}, which RunPod cannot "
                f"change to {kind}: take another --name, or remove it with --delete first."
            )

    async def _list(self, path: str, key: str) -> Sequence[Mapping[str, Any]]:
        found = (await self._api.call("GET", path)).get(key)
        if not isinstance(found, list):
            raise DeployError(f"RunPod's answer to GET {path} has no list of {key}.")
        return found

    def _one(self, items: Sequence[Mapping[str, Any]], noun: str) -> Mapping[str, Any] | None:
        name = self._wanted.name
        found = [item for item in items if item.get("name") in (name, name + OLD_FLASHBOOT)]
        if len(found) > 1:
            ids = ", ".join(str(item["id"]) for item in found)
            raise DeployError(
                f"There are {len(found)} {noun}s called '{name}' ({ids}): delete or rename all but one."
            )
        return found[0] if found else None

    def _note(self, text: str) -> None:
        self._changed.append(text)
        self._tell(text)
