"""What draws: does it answer under that address and key, what has it loaded, is there a GPU where one is wanted."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from gateway.settings import BackendKind
from models.db import utc_now
from scripts.calling.access import Access
from scripts.calling.gateway import Gateway, Reply, UnreachableError
from scripts.diagnosing.finding import clock, fault, good, skipped, warning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scripts.diagnosing.finding import Finding
    from scripts.diagnosing.machine import Loaded

PART = "backend"
ANSWER_S = 15.0
TORCH_S = 90.0
ASK_TORCH = (
    "import json, torch; ok = torch.cuda.is_available(); print(json.dumps({'cuda': ok, 'version': torch.__version__, "
    "'name': torch.cuda.get_device_name() if ok else None, "
    "'gib': round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if ok else 0}))"
)


@dataclass(frozen=True, slots=True)
class Target:
    """The backend as the gateway knows it; `ours` is whether scripts/up starts it here."""

    url: str
    key: str
    kind: BackendKind
    ours: bool


async def check_backend(target: Target, *, runs: bool) -> AsyncIterator[Finding]:
    """One finding after the other, as far as it goes."""
    async with Gateway(Access(target.url, target.key), answer_s=ANSWER_S) as http:
        try:
            health = await http.request("GET", "/health")
        except UnreachableError as problem:
            if target.ours and not runs:
                yield skipped(PART, f"nothing answers at {target.url} yet: scripts/up starts it")
                return
            mend = "start it, or correct IGEN_BACKEND_URL; it is asked from this machine, as the gateway does"
            yield fault(PART, f"{target.url}: {problem}", mend)
            return
        refusal = _refusal(target, health)
        if refusal is not None:
            yield refusal
            return
        yield _workers(target, health.body)
        if (date := health.headers.get("Date")) is not None:
            yield clock("backend's clock", (parsedate_to_datetime(date) - utc_now()).total_seconds())
        if target.kind is BackendKind.SELFHOSTED:
            yield _checkpoint(await _info(http))


def _refusal(target: Target, health: Reply) -> Finding | None:
    if health.status in (401, 403):
        where = "IGEN_BACKEND_KEY must be a RunPod key with access to this endpoint"
        if target.kind is BackendKind.SELFHOSTED:
            where = (
                "IGEN_BACKEND_KEY must be the server's IGEN_INFERENCE_KEY (unset: both read $IGEN_HOME/inference-key)"
            )
        return fault(PART, f"{target.url} refuses the key", where)
    if health.status == 404:  # noqa: PLR2004
        mend = "IGEN_BACKEND_URL ends in /v2/<endpoint>: on RunPod the endpoint's id, else the server's IGEN_ENDPOINT"
        return fault(PART, f"{target.url} knows no such endpoint", mend)
    if health.status != 200 or not isinstance(health.body, dict) or "workers" not in health.body:  # noqa: PLR2004
        mend = "is IGEN_BACKEND_URL the address of an inference server of IGen, or of a RunPod endpoint?"
        return fault(PART, f"{target.url}/health was answered {health.status}, not as a generator does", mend)
    return None


def _workers(target: Target, told: dict[str, Any]) -> Finding:
    workers = {str(name): int(count) for name, count in told["workers"].items() if isinstance(count, int)}
    said = ", ".join(f"{count} {name}" for name, count in workers.items() if count) or "no worker at the moment"
    if workers.get("unhealthy"):
        return fault(PART, f"{target.url}: {said}", "see the worker's log: the checkpoint or the GPU cannot be used")
    if workers.get("throttled"):
        return warning(PART, f"{target.url}: {said}", "RunPod has no GPU of these types free; name more types")
    if not said[0].isdigit() and target.kind is BackendKind.SELFHOSTED:
        return warning(PART, f"{target.url}: {said}", "it may still be loading; ask again in a minute")
    return good(PART, f"{target.url}: {said}; the key is accepted")


async def _info(http: Gateway) -> dict[str, Any]:
    try:
        reply = await http.request("GET", "/info")
    except UnreachableError:
        return {}
    return reply.body if reply.status == 200 and isinstance(reply.body, dict) else {}  # noqa: PLR2004


def _checkpoint(told: dict[str, Any]) -> Finding:
    if "checkpoint" not in told:
        return skipped("checkpoint", "the backend does not say what it has loaded (it may still be loading)")
    said = f"{told['checkpoint']} on {told.get('device')} as {told.get('dtype')}, attention {told.get('attention')}"
    if told.get("demonstration"):
        mend = "set IGEN_CHECKPOINT at the inference server for real pictures (docs/checkpoints.md)"
        return warning("checkpoint", f"{said}: the demonstration checkpoint", mend)
    return good("checkpoint", said)


async def check_gpu(loaded: Loaded) -> AsyncIterator[Finding]:
    """Whether torch sees a GPU, where the inference server is to run on this machine and may use one."""
    if not loaded.supervisor.draws_here or loaded.inference is None:
        yield skipped("gpu", "pictures are not drawn here")
        return
    device = loaded.inference.device
    if device == "cpu" or (device == "auto" and shutil.which("nvidia-smi") is None):
        told = "IGEN_DEVICE is cpu" if device == "cpu" else "there is no NVIDIA driver here, so it draws on the CPU"
        if loaded.inference.checkpoint == "tiny":
            yield good("gpu", f"{told}, which is enough for the demonstration checkpoint")
        else:
            yield warning("gpu", f"{told}; SDXL takes minutes a picture so", "use a machine with a GPU, or RunPod")
        return
    yield await _ask_torch(device)


async def _ask_torch(device: str) -> Finding:
    """In a process of its own: torch takes seconds to load, and a broken driver may take the process with it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ASK_TORCH), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    mend = "see that nvidia-smi works, and that torch is a CUDA build for this driver (IGEN_TORCH_INDEX, scripts/up)"
    try:
        out, errors = await asyncio.wait_for(process.communicate(), TORCH_S)
        told = json.loads(out)
    except TimeoutError:
        process.kill()
        await process.wait()
        return fault("gpu", f"torch has not answered in {TORCH_S:g} s", mend)
    except ValueError:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no word"])[-1]
        return fault("gpu", f"torch cannot be used: {last}", mend)
    if told["cuda"]:
        return good("gpu", f"{told['name']}, {told['gib']} GiB, torch {told['version']}")
    said = f"torch {told['version']} sees no CUDA GPU"
    if device == "cuda":
        return fault("gpu", f"IGEN_DEVICE is cuda, and {said}", mend)
    return warning("gpu", f"there is an NVIDIA driver, and {said}: it draws on the CPU", mend)
