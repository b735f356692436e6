"""`--dry-run`: prints each call instead of making it; what is only read is read, where there is a key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from scripts.deploying.api import MASK, scrub
from scripts.deploying.gpus import DOCUMENTED

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from scripts.deploying.api import Api

Body = dict[str, Any]
NOTHING: Mapping[str, Body] = {
    "/v2/catalog/gpus": {"gpus": [{"id": gpu, "pool": pool} for pool, types in DOCUMENTED.items() for gpu in types]},
    "/v2/network-volumes": {"networkVolumes": []},
    "/v2/templates": {"templates": []},
    "/v2/serverless": {"endpoints": []},
}
"""An account that holds nothing yet."""


class Rehearsal:
    """Stands before the real API, or before an empty account where there is no key."""

    def __init__(
        self,
        real: Api | None,
        base: str,
        secrets: Collection[str],
        hidden: Collection[str],
        tell: Callable[[str], None],
    ) -> None:
        """Take collaborators.

        Args:
            real: where reads go; None reads an empty account.
            base: the API's address, for the print.
            secrets: values that are masked.
            hidden: names of variables whose values are masked, however short.
            tell: prints a line.

        """
        self._real = real
        self._base = base
        self._secrets = secrets
        self._hidden = hidden
        self._tell = tell
        self._endpoint: Body = {}

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Body:
        """Read for real or print.

        Raises:
            DeployError: a read failed.

        """
        if method == "GET":
            self._tell(f"GET {self._base}{path}")
            return await self._real.call(method, path) if self._real else dict(NOTHING[path])
        if path == "/graphql" and "variables" not in (body or {}):
            return await self._models(body or {})
        self._print(method, path, body)
        return self._pretend(path, body or {})

    async def _models(self, body: Mapping[str, Any]) -> Body:
        """The read of what is cached; an endpoint that is only rehearsed is not in it."""
        self._tell(f"POST {self._base}/graphql (a query: reads)")
        if self._real and not self._endpoint:
            return await self._real.call("POST", "/graphql", body)
        return {"data": {"myself": {"endpoints": [{**self._endpoint, "networkVolumeIds": []}]}}}

    def _pretend(self, path: str, body: Mapping[str, Any]) -> Body:
        if path == "/graphql":
            return {"data": {"saveEndpoint": {"modelReferences": body["variables"]["input"]["modelReferences"]}}}
        made = {"id": f"<id of the {'template' if 'templates' in path else 'endpoint'}>", "name": body.get("name")}
        if path == "/v2/serverless":
            self._endpoint = made
        return made

    def _print(self, method: str, path: str, body: Mapping[str, Any] | None) -> None:
        self._tell(f"{method} {self._base}{path}")
        if body is not None:
            self._tell(scrub(json.dumps(self._masked(body), indent=2), self._secrets))

    def _masked(self, body: Mapping[str, Any]) -> Body:
        if "env" not in body:
            return dict(body)
        env = {name: MASK if name in self._hidden else value for name, value in body["env"].items()}
        return {**body, "env": env}
