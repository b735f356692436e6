"""`POST /api/verify`: a generation's pictures are drawn again from their receipt and compared."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse  # noqa: TC002 - FastAPI reads the annotations when it runs
from pydantic import ValidationError

from gateway.auth import KnownCaller  # noqa: TC001 - as above
from gateway.backend import AnswerLostError, BackendFaultError, NotSentError, UnknownJobError
from gateway.bodies import read_object
from gateway.drawing import refuse_while_draining
from gateway.errors import NotVerifiableError, VerifyUnsupportedError
from gateway.failures import BackendAnswerError, BackendLostError, BackendUnavailableError, GenerationTimeoutError
from gateway.filekinds import kind_of_key
from gateway.generate import find_generation
from gateway.inputs import FIELDS, shown
from gateway.outcome import failure_of
from gateway.requestlog import record_of
from gateway.responses import answer_json
from gateway.routes import route
from gateway.schemas import VERIFY_BODY, VerifiedAnswer
from gateway.services import services_of
from gateway.settings import BackendKind
from models.errors import InvalidInputError
from models.tables import GenerationState
from models.wire import Receipt, VerifyOutput, VerifyRequest, invalid_input

if TYPE_CHECKING:
    from gateway.keys import Caller
    from gateway.ledger import Told
    from gateway.services import Services
    from models.wire import JobAnswer

FILES_MAX_BYTES = 12_000_000
"""Of a generation's own pictures, to be sent along; beyond it only the receipt's hashes are compared."""
SUBMIT_WAIT_S = 1.0
HOLD_S = 20.0
MISSES = 4
AGAIN_S = 0.5

router = APIRouter(prefix="/api", redirect_slashes=False)


@route(
    router,
    "POST",
    "/verify",
    summary="Draw from a receipt again and compare",
    responses={200: {"model": VerifiedAnswer, "description": "How the pictures compare."}},
    openapi_extra=VERIFY_BODY,
)
async def verify(request: Request, caller: KnownCaller) -> JSONResponse:
    """`{"generation": id}` for one of your own, or a receipt with what it is to be compared with."""
    services = services_of(request)
    refuse_while_draining(services)
    if services.backend.kind is not BackendKind.SELFHOSTED:
        raise VerifyUnsupportedError
    with services.admission.enter():
        async with services.bodies.room(request):
            asked = await _asked(request, caller)
            answer = await _submit(services, asked, record_of(request.scope).request_id)
            del asked
        answer = await _finished(services, answer)
    if (failure := failure_of(answer)) is not None:
        raise failure
    try:
        told = VerifyOutput.model_validate(answer.output)
    except ValidationError:
        raise BackendAnswerError from None
    return answer_json(request.scope, {"status": "success", **told.model_dump(mode="json")})


async def _asked(request: Request, caller: Caller) -> VerifyRequest:
    document = await read_object(request)
    pictures = document.get("images")
    summary = {"images": f"<{len(pictures)} pictures>"} if isinstance(pictures, list) else {}
    record_of(request.scope).request_body = {**shown(document), **summary}
    if "generation" not in document:
        try:
            return VerifyRequest.model_validate(document)
        except ValidationError as problem:
            raise invalid_input(problem) from None
    if other := sorted(document.keys() - {"generation"}):
        raise InvalidInputError.for_field(other[0], "send this or generation, not both")
    services, generation_id = services_of(request), document["generation"]
    if not isinstance(generation_id, str):
        raise InvalidInputError.for_field("generation", "must be a generation's id")
    told = await find_generation(services, caller, generation_id)
    record_of(request.scope).generation_id = generation_id
    return await _of_generation(services, told)


async def _of_generation(services: Services, told: Told) -> VerifyRequest:
    """A generation's receipt, its lossless pictures, and what it was started from.

    Raises:
        NotVerifiableError: it has no pictures, or was drawn by a backend that gives no such receipt.

    """
    if told.state is not GenerationState.COMPLETED:
        raise NotVerifiableError
    try:
        receipt = Receipt.model_validate((told.row.output or {}).get("receipt"))
    except ValidationError:
        raise NotVerifiableError from None
    given = await services.inputs.whole(told.row)
    return VerifyRequest(
        receipt=receipt,
        images=await _files(services, told),
        image=given.get(FIELDS[0]),
        mask=given.get(FIELDS[1]),
    )


async def _files(services: Services, told: Told) -> list[str]:
    """Pictures as they were drawn. What was compressed with loss, or blurred, is compared by hash alone."""
    as_drawn = all(kind_of_key(picture.object_key).name == "png" for picture in told.pictures)
    as_drawn = as_drawn and not (told.row.output or {}).get("flagged")
    if not as_drawn or sum(picture.bytes for picture in told.pictures) > FILES_MAX_BYTES:
        return []
    files = [await services.store.get(picture.object_key) for picture in told.pictures]
    return [(await asyncio.to_thread(base64.b64encode, data)).decode() for data in files]


async def _submit(services: Services, asked: VerifyRequest, correlation: str) -> JobAnswer:
    try:
        return await services.backend.verify(asked, wait_s=SUBMIT_WAIT_S, correlation=correlation)
    except NotSentError as problem:
        raise BackendUnavailableError(retry_after_s=2) from problem
    except AnswerLostError as problem:  # it may be drawn in vain; nothing is kept of it
        raise BackendLostError from problem


async def _finished(services: Services, answer: JobAnswer) -> JobAnswer:
    """The job's last answer; one that takes too long is cancelled."""
    try:
        async with asyncio.timeout(services.settings.generation_timeout):
            misses = 0
            while not answer.status.terminal:
                try:
                    answer, misses = await services.backend.status(answer.id, wait_s=HOLD_S), 0
                except UnknownJobError:
                    raise BackendLostError from None
                except (NotSentError, AnswerLostError, BackendFaultError) as problem:
                    misses += 1
                    if misses == MISSES:
                        raise BackendLostError from problem
                    await asyncio.sleep(AGAIN_S)
    except TimeoutError:
        await _cancel(services, answer.id)
        raise GenerationTimeoutError from None
    return answer


async def _cancel(services: Services, job_id: str) -> None:
    try:
        await services.backend.cancel(job_id)
    except (NotSentError, AnswerLostError, BackendAnswerError):
        return  # the backend's own limits end it
