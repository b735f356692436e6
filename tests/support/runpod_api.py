"""A stand-in for RunPod's management API: REST v2 and the part of GraphQL that cached models need.

Bodies are checked field by field against the published schema (api-reference-v2/openapi.json: unknown fields, wrong
types and missing ones are 422, rules between fields 400), so that a call RunPod would refuse is refused here.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError

from tests.support.runpod_schema import (
    Container,
    CreateEndpoint,
    CreatePod,
    CreateTemplate,
    SaveEndpoint,
    UpdateEndpoint,
    UpdateTemplate,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

KEY = "rpa_TESTKEY0123456789"
GPUS = {
    "NVIDIA GeForce RTX 4090": "ADA_24",
    "NVIDIA L40": "ADA_48_PRO",
    "NVIDIA L40S": "ADA_48_PRO",
    "NVIDIA RTX 6000 Ada Generation": "ADA_48_PRO",
    "NVIDIA H100 80GB HBM3": "ADA_80_PRO",
    "NVIDIA GeForce RTX 3070": None,
}
COMMIT = "462165984030d82259a11f4367a4eed129e94a7b"


class RefusedError(Exception):
    def __init__(self, status: int, detail: str, errors: list[str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.errors = errors


@dataclass
class RunpodAccount:
    """What the account holds. `faults` are answers (status, detail, headers) given before anything is looked at."""

    base: str = ""
    templates: dict[str, dict[str, Any]] = field(default_factory=dict)
    endpoints: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    volumes: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, list[str]] = field(default_factory=dict)
    worker_quota: int = 5
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    faults: dict[tuple[str, str], list[tuple[int, str, dict[str, str]]]] = field(default_factory=dict)
    lose_answers: set[tuple[str, str]] = field(default_factory=set)
    _ids: Any = field(default_factory=lambda: count(1))

    @property
    def writes(self) -> list[tuple[str, str, Any]]:
        """Calls that change something."""
        return [
            call
            for call in self.calls
            if call[0] != "GET" and not (call[1] == "/graphql" and "variables" not in call[2])
        ]

    # ---- templates

    async def list_templates(self, _: web.Request, __: Any) -> Any:
        return {"templates": list(self.templates.values())}

    async def create_template(self, _: web.Request, body: Any) -> Any:
        wanted = check(CreateTemplate, body)
        template = {"id": f"tpl{next(self._ids)}", **CreateTemplate(**wanted).model_dump()}
        self.templates[template["id"]] = template
        return 201, template

    async def update_template(self, request: web.Request, body: Any) -> Any:
        template = self._own(self.templates, request)
        template.update(check(UpdateTemplate, body))
        return template

    async def delete_template(self, request: web.Request, _: Any) -> Any:
        del self.templates[self._own(self.templates, request)["id"]]
        return 204, None

    # ---- endpoints

    async def list_endpoints(self, _: web.Request, __: Any) -> Any:
        return {"endpoints": list(self.endpoints.values())}

    async def create_endpoint(self, _: web.Request, body: Any) -> Any:
        wanted = check(CreateEndpoint, body)
        self._check_gpu(wanted.get("gpu"))
        self._check_volumes(wanted)
        template = self._template(wanted.pop("templateId", None))
        workers = {"min": 0, "max": 3, "idleTimeout": 10, **(wanted.pop("workers", None) or {})}
        self._check_quota("", workers)
        endpoint = {
            "id": f"ep{next(self._ids)}",
            **{name: template[name] for name in Container.model_fields if name in template},
            "timeout": 300000,
            "flashboot": "OFF",
            "dataCenterIds": [],
            "networkVolumes": [],
            **wanted,
            "workers": workers,
            "createdAt": "2026-11-21T00:00:00Z",
        }
        endpoint["gpu"] = {"allowedCudaVersions": [], "minCudaVersion": None, "count": 1, **endpoint["gpu"]}
        endpoint["requestUrls"] = self._urls(endpoint)
        self.endpoints[endpoint["id"]] = endpoint
        return 201, endpoint

    async def update_endpoint(self, request: web.Request, body: Any) -> Any:
        endpoint = self._own(self.endpoints, request)
        wanted = check(UpdateEndpoint, body)
        self._check_gpu(wanted.get("gpu"))
        self._check_volumes(wanted)
        template = self._template(wanted.pop("templateId", None))
        self._check_quota(endpoint["id"], {**endpoint["workers"], **wanted.get("workers", {})})
        endpoint.update({name: template[name] for name in Container.model_fields if name in template})
        if gpu := wanted.pop("gpu", None):
            if "pools" in gpu:
                endpoint["gpu"].pop("excludedTypes", None)
            endpoint["gpu"].update({**gpu, "minCudaVersion": gpu.get("minCudaVersion") or None})
        endpoint["workers"] |= wanted.pop("workers", {})
        endpoint.update(wanted)
        return endpoint

    async def delete_endpoint(self, request: web.Request, _: Any) -> Any:
        endpoint = self._own(self.endpoints, request)
        del self.endpoints[endpoint["id"]]
        return 204, None

    # ---- what else is asked

    async def create_pod(self, _: web.Request, body: Any) -> Any:
        pod = {"id": f"pod{next(self._ids)}", **check(CreatePod, body)}
        if pod["gpu"]["id"] not in GPUS:
            raise RefusedError(400, f"unknown GPU type {pod['gpu']['id']}")
        self.pods[pod["id"]] = pod
        return 201, pod

    async def delete_pod(self, request: web.Request, _: Any) -> Any:
        del self.pods[self._own(self.pods, request)["id"]]
        return 204, None

    async def list_gpus(self, _: web.Request, __: Any) -> Any:
        return {
            "gpus": [{"id": gpu, "name": gpu.removeprefix("NVIDIA "), "pool": pool} for gpu, pool in GPUS.items()]
        }

    async def list_volumes(self, _: web.Request, __: Any) -> Any:
        return {"networkVolumes": self.volumes}

    async def graphql(self, _: web.Request, body: Any) -> Any:
        query = body["query"]
        if query.startswith("query"):
            return {"data": {"myself": {"endpoints": [self._graphql_endpoint(ep) for ep in self.endpoints.values()]}}}
        assert query.startswith("mutation SaveEndpoint($input: EndpointInput!) { saveEndpoint(input: $input)")
        try:
            wanted = SaveEndpoint.model_validate(body["variables"]["input"])
        except ValidationError as problem:
            return {"errors": [{"message": str(problem)}]}
        current = self._graphql_endpoint(self.endpoints[wanted.id])
        differing = {name for name, value in wanted.model_dump().items() if (current.get(name) or value) != value}
        assert differing <= {"modelReferences", "type"}, f"the replacement would reset {differing}"
        self.models[wanted.id] = [
            url.removesuffix(":main") + f":{COMMIT}" if url.endswith(":main") else url
            for url in wanted.modelReferences
        ]
        return {"data": {"saveEndpoint": {"id": wanted.id, "modelReferences": self.models[wanted.id]}}}

    def _graphql_endpoint(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        gpu, scaling = endpoint["gpu"], endpoint["scaling"]
        excluded = [f"-{name}" for name in gpu.get("excludedTypes") or []]
        return {
            "id": endpoint["id"],
            "name": endpoint["name"],
            "templateId": f"bound-{endpoint['id']}",
            "gpuIds": ",".join([*gpu["pools"], *excluded]),
            "gpuCount": gpu["count"],
            "instanceIds": None,
            "workersMin": endpoint["workers"]["min"],
            "workersMax": endpoint["workers"]["max"],
            "locations": ",".join(endpoint["dataCenterIds"]),
            "networkVolumeId": (endpoint["networkVolumes"] or [None])[0],
            "networkVolumeIds": [{"networkVolumeId": volume} for volume in endpoint["networkVolumes"]],
            "idleTimeout": endpoint["workers"]["idleTimeout"],
            "scalerType": scaling["type"],
            "scalerValue": scaling.get("queueDelay", scaling.get("requestCount")),
            "executionTimeoutMs": endpoint["timeout"],
            "minCudaVersion": gpu["minCudaVersion"],
            "flashBootType": endpoint["flashboot"],
            "modelReferences": self.models.get(endpoint["id"]),
        }

    def _urls(self, endpoint: dict[str, Any]) -> dict[str, str]:
        if endpoint["type"] == "LOAD_BALANCER":
            base = f"https://{endpoint['id']}.api.runpod.ai"
            return {"base": base, "health": f"{base}/ping"}
        return {"run": f"https://api.runpod.ai/v2/{endpoint['id']}/run"}

    @staticmethod
    def _own(things: dict[str, dict[str, Any]], request: web.Request) -> dict[str, Any]:
        try:
            return things[request.match_info["id"]]
        except KeyError:
            raise RefusedError(404, "resource not found") from None

    def _template(self, template_id: str | None) -> dict[str, Any]:
        if template_id is None:
            return {}
        if template_id not in self.templates:
            raise RefusedError(404, "template not found")
        if not self.templates[template_id]["serverless"]:
            raise RefusedError(422, "the template is no serverless template")
        return self.templates[template_id]

    @staticmethod
    def _check_gpu(gpu: dict[str, Any] | None) -> None:
        if gpu is None:
            return
        for pool in gpu.get("pools", []):
            if pool not in GPUS.values():
                raise RefusedError(400, f"unknown pool {pool}")
        for name in gpu.get("excludedTypes") or []:
            if GPUS.get(name) not in gpu["pools"]:
                raise RefusedError(400, f"{name} is not a GPU type in one of the pools")

    def _check_volumes(self, wanted: dict[str, Any]) -> None:
        if set(wanted.get("networkVolumes") or []) - {volume["id"] for volume in self.volumes}:
            raise RefusedError(404, "network volume not found")

    def _check_quota(self, endpoint_id: str, workers: dict[str, Any]) -> None:
        others = sum(ep["workers"]["max"] for ep in self.endpoints.values() if ep["id"] != endpoint_id)
        if others + workers["max"] > self.worker_quota:
            raise RefusedError(
                400, f"Max workers across all endpoints must not exceed your workers quota ({self.worker_quota})."
            )

    # ---- HTTP

    def route(self, answer: Callable[[web.Request, Any], Awaitable[Any]]) -> Callable[[web.Request], Awaitable[Any]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            raw = await request.read()
            body = json.loads(raw) if raw else None
            self.calls.append((request.method, request.path, body))
            call = (request.method, request.path)
            if request.headers.get("Authorization") != f"Bearer {KEY}":
                return problem(401, "invalid bearer token")
            if faults := self.faults.get(call):
                status, detail, headers = faults.pop(0)
                return problem(status, detail, headers=headers)
            try:
                found = await answer(request, body)
            except RefusedError as refused:
                return problem(refused.status, str(refused), refused.errors)
            if call in self.lose_answers:
                self.lose_answers.remove(call)
                assert request.transport is not None
                request.transport.abort()
            status, content = found if isinstance(found, tuple) else (200, found)
            return web.Response(status=204) if content is None else web.json_response(content, status=status)

        return handle

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application()
        app.router.add_get("/v2/templates", self.route(self.list_templates))
        app.router.add_post("/v2/templates", self.route(self.create_template))
        app.router.add_patch("/v2/templates/{id}", self.route(self.update_template))
        app.router.add_delete("/v2/templates/{id}", self.route(self.delete_template))
        app.router.add_get("/v2/serverless", self.route(self.list_endpoints))
        app.router.add_post("/v2/serverless", self.route(self.create_endpoint))
        app.router.add_patch("/v2/serverless/{id}", self.route(self.update_endpoint))
        app.router.add_delete("/v2/serverless/{id}", self.route(self.delete_endpoint))
        app.router.add_post("/v2/pods", self.route(self.create_pod))
        app.router.add_delete("/v2/pods/{id}", self.route(self.delete_pod))
        app.router.add_get("/v2/catalog/gpus", self.route(self.list_gpus))
        app.router.add_get("/v2/network-volumes", self.route(self.list_volumes))
        app.router.add_post("/graphql", self.route(self.graphql))
        return app


def check(kind: type[BaseModel], body: Any) -> dict[str, Any]:
    """The body as it was sent, if the schema has it so."""
    try:
        TypeAdapter(kind).validate_python(body)
    except ValidationError as wrong:
        errors = [f"$.{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in wrong.errors()]
        raise RefusedError(422, "Request validation failed.", errors) from None
    return dict(body)


def problem(status: int, detail: str, errors: list[str] | None = None, headers: Any = None) -> web.Response:
    body = {"title": "Problem", "status": status, "detail": detail, **({"errors": errors} if errors else {})}
    return web.json_response(body, status=status, content_type="application/problem+json", headers=headers)


@asynccontextmanager
async def running_account(**options: Any) -> AsyncIterator[RunpodAccount]:
    """The API on a free loopback port."""
    account = RunpodAccount(**options)
    runner = web.AppRunner(account.application(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    account.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield account
    finally:
        await runner.cleanup()
