"""What can go wrong in the gateway, beside the failures of a generation."""

from __future__ import annotations

from models.errors import (
    BadRequestError,
    FieldProblem,
    ForbiddenError,
    IgenError,
    InvalidInputError,
    NotFoundError,
    TooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)


class MethodNotAllowedError(IgenError):
    """The address exists and does not take this method."""

    status = 405
    code = "method_not_allowed"
    report = False
    default_message = "This address does not take that method."


class RangeError(IgenError):
    """The part of a picture that was asked for lies beyond its end."""

    status = 416
    code = "range_not_satisfiable"
    report = False
    default_message = "The picture is shorter than the part that was asked for."


class IdempotencyConflictError(InvalidInputError):
    """The key was used before, with another body."""

    code = "idempotency_conflict"
    default_message = "This Idempotency-Key was used before with another request."


class BusyError(UnavailableError):
    """As many callers are waiting as the settings allow."""

    code = "gateway_full"
    default_message = "Too many requests are waiting. Try again later."


class StillRunningError(UnavailableError):
    """The caller's wait ends, the job does not."""

    code = "still_running"
    default_message = "The job goes on. Ask for it again with the same Idempotency-Key, or by its id."


class GenerationRunningError(IgenError):
    """A generation under way cannot be deleted: its picture may be paid for already."""

    status = 409
    code = "generation_running"
    retryable = True
    report = False
    default_message = "This generation has not ended yet. Delete it when it has."


class GenerationDeletedError(IgenError):
    """What an Idempotency-Key, or a picture that was about to be used, belongs to was deleted meanwhile."""

    status = 410
    code = "generation_deleted"
    report = False
    default_message = "This generation was deleted. Ask for another one with a new Idempotency-Key."


class NotVerifiableError(IgenError):
    """The generation has no receipt from which its pictures could be drawn again."""

    status = 409
    code = "not_verifiable"
    report = False
    default_message = "This generation has no pictures, or no receipt to draw them from again."


class VerifyUnsupportedError(IgenError):
    """RunPod's queue has no address that draws from a receipt."""

    status = 501
    code = "verify_unsupported"
    report = False
    default_message = "The backend is a RunPod endpoint, which cannot verify receipts. A self-hosted server can."


def from_status(status: int, detail: str = "") -> IgenError:
    """Our error for one that the router or the server raised by number."""
    if status == MethodNotAllowedError.status:
        return MethodNotAllowedError()
    kinds: dict[int, type[IgenError]] = {
        401: UnauthorizedError,
        404: NotFoundError,
        413: TooLargeError,
        503: UnavailableError,
    }
    if status in kinds:
        return kinds[status]()
    return BadRequestError(detail or None)


class UploadRefusedError(InvalidInputError):
    """A file that was sent is not what it should be; the code is that of whoever looked into it."""

    def __init__(self, field: str, code: str, message: str) -> None:
        self.code = code  # type: ignore[misc] # the kinds of fault are the compositor's, each with its own name
        super().__init__(f"{field}: {message}", details=[FieldProblem(field, message)])


class AssetInUseError(IgenError):
    """A design still names the asset."""

    status = 409
    code = "asset_in_use"
    report = False
    default_message = "A frame's design names this asset. Change the design first."


class OwnerLimitError(TooManyRequestsError):
    """An owner has as many things of a kind under way as the settings allow."""

    code = "too_many_at_once"

    @property
    def headers(self) -> dict[str, str]:
        """The body was not read, so the connection cannot be used again."""
        return {**super().headers, "Connection": "close"}


class OriginError(ForbiddenError):
    """A page of another site opened a WebSocket here."""

    code = "origin_not_allowed"
    default_message = "Pages of this origin may not connect. See IGEN_ALLOWED_ORIGINS."


class NoQueueError(UnavailableError):
    """There is no Redis, or it does not answer, and this needs one."""

    code = "queue_unavailable"
    default_message = "The queue does not answer. Try again later."
