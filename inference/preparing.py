"""From a request to a plan: everything checked, and the pictures that it brings read.

What stands in the request is read at once, so that what is wrong with it is a 422. What has to be fetched is fetched
later, while the job waits in the queue; then the plan is made anew with the pictures, under the same seed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inference.inputs import BadPictureError
from inference.plan import Plan, invalid, plan_job, random_seed
from inference.verify import Verification, input_of, plan_receipt
from models.errors import FieldProblem, InvalidInputError
from models.wire_fields import is_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.bounds import Bounds
    from inference.engine.types import Engine
    from inference.inputs import InputPictures
    from inference.sources import PictureSources
    from inference.styles import Styles
    from models.wire import JobInput, VerifyRequest


class Preparer:
    """Makes plans for one engine."""

    def __init__(self, engine: Engine, bounds: Bounds, sources: PictureSources, styles: Styles) -> None:
        self._engine = engine
        self._bounds = bounds
        self._sources = sources
        self._styles = styles

    async def draft(
        self, job_id: str, wanted: JobInput, prefix: Sequence[str] = (), further: Sequence[FieldProblem] = ()
    ) -> Plan:
        """Make every choice that the caller left open. Waits only where the request itself holds a picture.

        Args:
            job_id: the job's id.
            wanted: what the caller sent, valid in itself.
            prefix: where the input stands in the body, for the names of wrong fields.
            further: problems found elsewhere, complete with their place in the body.

        Raises:
            InvalidInputError: naming every field that is out of this server's bounds.

        """
        wanted = wanted if wanted.seed is not None else wanted.model_copy(update={"seed": random_seed()})
        links = self._sources.problems({"image": wanted.image, "mask": wanted.mask})
        try:
            plan = self._plan(job_id, wanted, None, links)
        except InvalidInputError as wrong:
            raise invalid([*invalid(wrong.details, prefix).details, *further]) from None
        if further:
            raise invalid(further)
        return await self._with_pictures(plan, wanted, prefix)

    async def draft_check(self, job_id: str, request: VerifyRequest) -> Plan:
        """The plan of a job that draws a receipt's pictures again and compares them.

        Raises:
            InvalidInputError: the receipt cannot be drawn here, or a picture cannot be used.

        """
        wanted = input_of(request)
        plan = plan_receipt(job_id, request, self._engine, self._bounds)
        links = self._sources.problems(
            {
                "image": request.image,
                "mask": request.mask,
                **{f"images.{index}": source for index, source in enumerate(request.images)},
            }
        )
        if links:
            raise invalid(links)

        async def prepare() -> Plan:
            try:
                inputs = await self._sources.inputs(wanted)
                images = await self._sources.files("images", request.images)
            except BadPictureError as bad:
                raise invalid([FieldProblem(bad.field, bad.reason)]) from None
            ready = plan_receipt(job_id, request, self._engine, self._bounds, inputs)
            return replace(ready, check=Verification(request.receipt, images, self._bounds.max_hires_pixels))

        sources = (request.image, request.mask, *request.images)
        if any(source is not None and is_link(source) for source in sources):
            return replace(plan, prepare=prepare)
        return await prepare()

    def _plan(
        self, job_id: str, wanted: JobInput, inputs: InputPictures | None, further: Sequence[FieldProblem] = ()
    ) -> Plan:
        return plan_job(
            job_id, wanted, self._engine, self._bounds, styles=self._styles, inputs=inputs, further=further
        )

    async def _with_pictures(self, plan: Plan, wanted: JobInput, prefix: Sequence[str]) -> Plan:
        if wanted.image is None:
            return plan

        async def prepare() -> Plan:
            try:
                inputs = await self._sources.inputs(wanted)
                return self._plan(plan.job.id, wanted, inputs)
            except BadPictureError as bad:
                raise invalid([FieldProblem(bad.field, bad.reason)], prefix) from None
            except InvalidInputError as wrong:
                raise invalid(wrong.details, prefix) from None

        if not any(source is not None and is_link(source) for source in (wanted.image, wanted.mask)):
            return await prepare()
        try:
            await self._sources.check_inline(wanted)
        except BadPictureError as bad:
            raise invalid([FieldProblem(bad.field, bad.reason)], prefix) from None
        return replace(plan, prepare=prepare)
