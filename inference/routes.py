"""RunPod's queue API on HTTP: each route reads its request, asks the dispatcher, answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel, TypeAdapter, ValidationError

from inference.answers import brief_answer, encode
from inference.dispatch import Dispatcher
from inference.metrics import CONTENT_TYPE
from inference.service import Phase, Service
from inference.waiting import wait_change, wait_end
from models.errors import BadRequestError, FieldProblem, InvalidInputError, NotFoundError, TooLargeError
from models.wire import JobId, JobRequest, VerifyRequest, invalid_input

if TYPE_CHECKING:
    from inference.auth import KeyGuard
    from inference.jobs import JobRecord

Body = TypeVar("Body", bound=BaseModel)

RUN_MAX_BYTES = 10_000_000
RUNSYNC_MAX_BYTES = 20_000_000
READ_ON_BYTES = 50_000_000  # of a body that is too large
WAIT_DEFAULT_MS = 90_000
WAIT_MIN_MS = 1_000
WAIT_MAX_MS = 300_000

_JOB_ID = TypeAdapter(JobId)
_PING = {Phase.LOADING: 204, Phase.READY: 200}


def service_of(request: Request) -> Service:
    """The process's one service."""
    return cast("Service", request.app.state.service)


def check_caller(request: Request, endpoint: Annotated[str, Path()]) -> None:
    """Every queue route: a good key, then the right endpoint.

    Raises:
        UnauthorizedError: no key or a wrong one.
        NotFoundError: another endpoint's name.

    """
    guard: KeyGuard = request.app.state.guard
    guard.check(request.headers.get("authorization"))
    if endpoint != service_of(request).settings.endpoint:
        raise NotFoundError("There is no endpoint of this name.")


def queue(request: Request) -> Dispatcher:
    """The queue, where it is ready."""
    return service_of(request).ready()


open_router = APIRouter()
router = APIRouter(prefix="/v2/{endpoint}", dependencies=[Depends(check_caller)])

Queue = Annotated[Dispatcher, Depends(queue)]
Wait = Annotated[int, Query(ge=WAIT_MIN_MS, le=WAIT_MAX_MS)]
LongPoll = Annotated[int, Query(ge=0, le=WAIT_MAX_MS)]
Ttl = Annotated[int | None, Query(ge=1)]


@open_router.get("/ping")
async def ping(request: Request) -> Response:
    """204 while loading, 200 when ready, 503 otherwise; RunPod's load balancer asks it."""
    return Response(status_code=_PING.get(service_of(request).phase, 503))


@open_router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text."""
    return Response(service_of(request).metrics.render(), media_type=CONTENT_TYPE)


@router.post("/run")
async def run(request: Request) -> Response:
    """Accept a job and answer at once."""
    record = await _submit(request, RUN_MAX_BYTES, sync=False)
    return _json(brief_answer(record))


@router.post("/runsync")
async def runsync(request: Request, wait: Wait = WAIT_DEFAULT_MS) -> Response:
    """Accept a job and answer when it is over, or as it stands after `wait` milliseconds.

    A caller that goes away cancels nothing: its job runs on and can be asked for.
    """
    record = await _submit(request, RUNSYNC_MAX_BYTES, sync=True)
    dispatcher = queue(request)
    await wait_end(record, wait / 1000)
    return _json(dispatcher.answer(record))


@router.post("/verify")
async def verify(request: Request, wait: Wait = WAIT_DEFAULT_MS) -> Response:
    """Draw again from a receipt and compare; answers as `/runsync` does, and `/status` knows the job."""
    dispatcher = service_of(request).accepting()
    body = parse_body(VerifyRequest, await read_body(request, RUNSYNC_MAX_BYTES))
    record = await dispatcher.verify(body, correlation_id=request.state.request_id)
    await wait_end(record, wait / 1000)
    return _json(dispatcher.answer(record))


@router.get("/status/{job_id}")
async def status(dispatcher: Queue, job_id: str, wait: LongPoll = 0, ttl: Ttl = None) -> Response:
    """A job as it stands. `wait`: only when something changed, at most so many milliseconds later."""
    record = dispatcher.get(job_id)
    if ttl is not None:
        dispatcher.keep_for(record, ttl / 1000)
    if wait:
        await wait_change(record, wait / 1000)
    return _json(dispatcher.answer(record))


@router.api_route("/stream/{job_id}", methods=["GET", "POST"])
async def stream(dispatcher: Queue, job_id: str) -> Response:
    """Progress and pictures that have not been handed out yet."""
    return _json(dispatcher.stream(dispatcher.get(job_id)))


@router.post("/cancel/{job_id}")
async def cancel(dispatcher: Queue, job_id: str) -> Response:
    """Stop a job at its next step."""
    return _json(brief_answer(dispatcher.cancel(job_id)))


@router.post("/retry/{job_id}")
async def retry(request: Request, job_id: str) -> Response:
    """Put a failed job back into the queue."""
    return _json(brief_answer(service_of(request).accepting().retry(job_id)))


@router.post("/purge-queue")
async def purge_queue(dispatcher: Queue) -> Response:
    """Cancel every job that waits."""
    return _json(encode({"removed": dispatcher.purge(), "status": "completed"}))


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Jobs and workers in numbers; answers while loading too."""
    return service_of(request).health().model_dump()


@router.get("/info")
async def info(request: Request) -> dict[str, Any]:
    """What is loaded, what may be named, and what is accepted."""
    return await service_of(request).info()


async def _submit(request: Request, max_bytes: int, *, sync: bool) -> JobRecord:
    dispatcher = queue(request)
    key = _idempotency_key(request)
    body = parse_body(JobRequest, await read_body(request, max_bytes))
    known = dispatcher.book.find(key or body.input.request_id or "")
    if known is None:  # a repeat is answered while draining too
        dispatcher = service_of(request).accepting()
    correlation_id = request.state.request_id if request.state.request_id_given else body.input.request_id or key
    return await dispatcher.submit(
        body, key=key, sync=sync, correlation_id=correlation_id or request.state.request_id
    )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body, never more than `max_bytes` of it in memory.

    One that is too large is read to its end and let go, as far as `READ_ON_BYTES`: most clients listen only when they
    have sent everything, and would see a broken connection in place of the answer.

    Raises:
        TooLargeError: it is larger, or says so.

    """
    too_large = TooLargeError(f"The request body may have at most {max_bytes} bytes.")
    declared = request.headers.get("content-length", "")
    size = int(declared) if declared.isdecimal() else 0
    asks_first = "expect" in request.headers  # such a client has sent nothing yet
    if size > max_bytes and (asks_first or size > max_bytes + READ_ON_BYTES):
        raise too_large
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > max_bytes + READ_ON_BYTES:
            raise too_large
        if size > max_bytes:
            body.clear()
        else:
            body += chunk
    if size > max_bytes:
        raise too_large
    return bytes(body)


def parse_body(kind: type[Body], body: bytes) -> Body:
    """Validate a JSON body.

    Raises:
        BadRequestError: it is no JSON.
        InvalidInputError: naming every wrong field.

    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_context=False, include_input=False)[0]
        # too deep and too many digits are JSON still; what is wrong is the content
        content = any(words in first["msg"] for words in ("recursion limit", "number out of range"))
        if first["type"] == "json_invalid" and not content:
            raise BadRequestError(
                f"The body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}"
            ) from None
        raise invalid_input(problem) from None


def _idempotency_key(request: Request) -> str | None:
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    try:
        return _JOB_ID.validate_python(given)
    except ValidationError:
        reason = "must be 1 to 128 letters, digits, '_', '.' or '-', beginning with a letter or digit"
        raise InvalidInputError(
            f"Idempotency-Key: {reason}", details=[FieldProblem("Idempotency-Key", reason)]
        ) from None


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
