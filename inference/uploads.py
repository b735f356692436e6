"""Where a job's pictures go: into the answer, into the operator's bucket, or into the bucket of one request."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from inference.delivery import InlineDelivery
from inference.errors import UploadFailedError
from inference.settings import host_and_port
from models.errors import FieldProblem, IgenError
from models.fetch import FetchBlockedError, FetchPolicy, SafeFetcher, check_url
from models.logs import get_logger
from models.store import PresignTarget, upload_presigned

if TYPE_CHECKING:
    from types import TracebackType

    from inference.delivery import Delivery
    from inference.pictures import PictureEncoder, PictureFile
    from inference.settings import InferenceSettings
    from models.wire import JobRequest, S3Config

log = get_logger(__name__)

UPLOADS_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class BucketDelivery:
    """Pictures go to a bucket by presigned URLs; the output holds links that are valid for seven days."""

    fetcher: SafeFetcher
    target: PresignTarget
    room: asyncio.Semaphore
    timeout_s: float

    async def deliver(self, job_id: str, index: int, picture: PictureFile) -> str:
        """Store one picture and return its link.

        Raises:
            UploadFailedError: the bucket did not take it in time, or refused.

        """
        try:
            async with asyncio.timeout(self.timeout_s), self.room:
                key = f"{job_id}/{index}{picture.suffix}"
                return await upload_presigned(self.fetcher, self.target, key, picture.data, picture.media_type)
        except TimeoutError:
            reason = f"the upload took longer than {self.timeout_s:g} seconds"
        except IgenError as problem:
            reason = problem.message
        log.error("upload_failed", job_id=job_id, index=index, bytes=len(picture.data), reason=reason)
        raise UploadFailedError(
            f"The pictures were drawn, but picture {index} could not be stored in bucket "
            f"'{self.target.bucket}': {reason} A retry of the job draws the same pictures."
        )


class Deliveries:
    """Chooses for each job. Use as an async context manager."""

    def __init__(
        self, settings: InferenceSettings, policy: FetchPolicy, fetcher: SafeFetcher, encoder: PictureEncoder
    ) -> None:
        """Take collaborators.

        Args:
            settings: the operator's bucket, if there is one.
            policy: the bounds of addresses that callers supply.
            fetcher: the way to them.
            encoder: for pictures that stand in the answer.

        """
        self._settings = settings
        self._policy = policy
        self._fetcher = fetcher
        self._inline = InlineDelivery(encoder)
        self._room = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._operators: BucketDelivery | None = None
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        target = operators_bucket(self._settings)
        if target is not None:
            # The operator's own endpoint may well be on a private network, so it is let through, and nothing else.
            policy = FetchPolicy(allow_hosts=frozenset({host_and_port(target.endpoint)}))
            fetcher = await self._stack.enter_async_context(SafeFetcher(policy))
            self._operators = BucketDelivery(fetcher, target, self._room, self._settings.upload_timeout_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def problems(self, request: JobRequest) -> list[FieldProblem]:
        """What is wrong with the addresses that a caller supplied, as far as can be known without the network."""
        return [
            *_address_problems("webhook", request.webhook, self._policy),
            *self.s3_problems(request.s3Config),
        ]

    def s3_problems(self, config: S3Config | None) -> list[FieldProblem]:
        """The same for a bucket alone."""
        return [] if config is None else _address_problems("s3Config.endpointUrl", config.endpointUrl, self._policy)

    def choose(self, config: S3Config | None) -> Delivery:
        """The request's bucket before the operator's, and that before the answer itself."""
        if config is not None:
            target = PresignTarget(config.endpointUrl, config.bucketName, config.accessId, config.accessSecret)
            return BucketDelivery(self._fetcher, target, self._room, self._settings.upload_timeout_s)
        return self._operators or self._inline


def operators_bucket(settings: InferenceSettings) -> PresignTarget | None:
    """The bucket of the BUCKET_* variables, named as RunPod's SDK names it."""
    endpoint, access, secret = (
        settings.bucket_endpoint_url,
        settings.bucket_access_key_id,
        settings.bucket_secret_access_key,
    )
    if endpoint is None or access is None or secret is None:
        return None
    name = settings.bucket_name or time.strftime("%m-%y", time.gmtime())
    return PresignTarget(endpoint, name, access.get_secret_value(), secret.get_secret_value())


def _address_problems(field: str, url: str | None, policy: FetchPolicy) -> list[FieldProblem]:
    if url is None:
        return []
    try:
        check_url(url, policy)
    except FetchBlockedError as blocked:
        return [FieldProblem(field, blocked.message)]
    return []
