"""Drawing again from a receipt: what to draw, how the pictures compare, what is not as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from inference.engine.types import UnknownCheckpointError
from inference.finishing import pixels_sha256
from inference.inputs import read_picture
from inference.plan import described, invalid, plan_job
from models.errors import FieldProblem, InvalidInputError
from models.wire import JobInput, PictureCheck, VerifyOutput, invalid_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inference.bounds import Bounds
    from inference.engine.types import Engine
    from inference.inputs import InputPictures
    from inference.plan import Plan
    from models.wire import Receipt, VerifyRequest

PREFIX = ("receipt",)


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """What a job is compared with. `images` are files in the seeds' order, or none at all; decoded when needed."""

    receipt: Receipt
    images: tuple[bytes, ...] = ()
    max_pixels: int = 0

    @property
    def nbytes(self) -> int:
        """Memory of the files."""
        return sum(map(len, self.images))

    def check(self, index: int, seed: int, pixels: NDArray[np.uint8]) -> PictureCheck:
        """Compare one picture that was drawn again. Blocking work for a thread."""
        hashes = self.receipt.pixels_sha256
        known = hashes[index] if index < len(hashes) else None
        given = read_picture(self.images[index], "images", self.max_pixels) if index < len(self.images) else None
        return compare(seed, pixels, known, given)


def compare(
    seed: int, pixels: NDArray[np.uint8], known_sha256: str | None, given: NDArray[np.uint8] | None
) -> PictureCheck:
    """Largest and mean difference in 8-bit levels of one channel, and the share of pixels that differ at all."""
    sha256 = pixels_sha256(pixels)
    same_hash = None if known_sha256 is None else sha256 == known_sha256
    if given is None:
        return PictureCheck(seed=seed, pixels_sha256=sha256, same_hash=same_hash)
    if given.shape != pixels.shape:
        return PictureCheck(seed=seed, pixels_sha256=sha256, same_hash=same_hash, same_size=False)
    apart = np.abs(pixels.astype(np.int16) - given.astype(np.int16))
    return PictureCheck(
        seed=seed,
        pixels_sha256=sha256,
        same_hash=same_hash,
        same_size=True,
        max_difference=int(apart.max()),
        mean_difference=round(float(apart.mean()), 6),
        differing_pixels=round(float((apart.max(axis=2) > 0).mean()), 6),
    )


def verify_output(
    asked: Receipt, drawn: Receipt, pictures: list[PictureCheck], timings: dict[str, float]
) -> VerifyOutput:
    """The answer; `asked` is the caller's receipt, `drawn` that of the pictures drawn now."""
    by_hash = all(picture.same_hash for picture in pictures)
    by_pixel = all(picture.max_difference == 0 for picture in pictures)
    apart = [picture.max_difference for picture in pictures if picture.max_difference is not None]
    return VerifyOutput(
        identical=by_hash or by_pixel,
        max_difference=max(apart, default=None),
        pictures=pictures,
        differs=differences(asked, drawn),
        receipt=drawn,
        timings=timings,
    )


def differences(asked: Receipt, drawn: Receipt) -> dict[str, list[str]]:
    """What is not as the receipt says: its value and the one of now."""
    if not asked.levers:  # older receipts do not tell
        drawn = drawn.model_copy(update={"levers": {}})
    then, now = _facts(asked), _facts(drawn)
    names = [name for name in (*then, *(name for name in now if name not in then)) if then.get(name) != now.get(name)]
    return {name: [then.get(name, ""), now.get(name, "")] for name in names}


def plan_receipt(
    job_id: str, request: VerifyRequest, engine: Engine, bounds: Bounds, inputs: InputPictures | None = None
) -> Plan:
    """The job that a receipt describes. The prompts are taken as they were drawn, so no style is applied again.

    Raises:
        InvalidInputError: it cannot be drawn here: out of bounds, another checkpoint, a picture that is missing.

    """
    receipt = request.receipt
    wanted = input_of(request)
    plan = plan_job(
        job_id,
        wanted,
        engine,
        bounds,
        inputs=inputs,
        further=[*_checkpoint_problems(receipt, engine), *_picture_problems(request, inputs)],
        prefix=PREFIX,
    )
    refiner = receipt.refiner
    pictures = tuple(
        replace(
            spec,
            prompt=receipt.prompt,
            negative_prompt=receipt.negative_prompt,
            seed=seed,
            refiner=replace(spec.refiner, negative_prompt=refiner.negative_prompt)
            if spec.refiner and refiner
            else spec.refiner,
        )
        for spec, seed in zip(plan.job.pictures, receipt.seeds, strict=True)
    )
    return replace(plan, job=replace(plan.job, pictures=pictures), ignored=())


def input_of(request: VerifyRequest) -> JobInput:
    """The receipt as a job's input, so that a receipt is held to every bound that a request is.

    Raises:
        InvalidInputError: naming the receipt's fields.

    """
    receipt = request.receipt
    fields: dict[str, Any] = {
        "prompt": "a receipt's prompt is put in its place",
        "negative_prompt": "",
        "checkpoint": receipt.checkpoint,
        "scheduler": receipt.scheduler,
        "seed": receipt.seeds[0],
        "num_images": len(receipt.seeds),
        "width": receipt.width,
        "height": receipt.height,
        "num_inference_steps": receipt.num_inference_steps,
        "guidance_scale": receipt.guidance_scale,
        "strict": receipt.strict,
        "prompt_syntax": receipt.prompt_syntax,
        "loras": [{"name": lora.name, "scale": lora.scale} for lora in receipt.loras],
        "strength": receipt.strength,
        "image": request.image,
        "mask": request.mask,
    }
    if receipt.hires is not None:
        fields["hires"] = receipt.hires.model_dump()
    if receipt.refiner is not None:
        fields |= {
            "refiner": receipt.refiner.checkpoint,
            "refiner_inference_steps": receipt.refiner.steps,
            "high_noise_frac": receipt.refiner.switch_at,
        }
    try:
        wanted = JobInput.model_validate(fields)
    except ValidationError as problem:
        raise invalid(invalid_input(problem).details, PREFIX) from None
    if wrong := [seed for seed in receipt.seeds if not 0 <= seed < 2**32]:
        raise InvalidInputError.for_field("receipt.seeds", f"{wrong[0]} is no seed")
    return wanted


def _checkpoint_problems(receipt: Receipt, engine: Engine) -> list[FieldProblem]:
    """A checkpoint that has not been loaded yet has no hash to compare; it is compared when it has drawn."""
    asked = [("checkpoint_sha256", receipt.checkpoint, receipt.checkpoint_sha256)]
    if receipt.refiner is not None:
        asked.append(("refiner.sha256", receipt.refiner.checkpoint, receipt.refiner.sha256))
    problems = []
    for field, name, sha256 in asked:
        try:
            known = described(engine, name).sha256
        except UnknownCheckpointError:
            continue  # named by the plan
        if known and known != sha256:
            reason = f"'{name}' is another checkpoint here: its sha256 is {known}, so the pictures would differ"
            problems.append(FieldProblem(field, reason))
    return problems


def _picture_problems(request: VerifyRequest, inputs: InputPictures | None) -> list[FieldProblem]:
    receipt, problems = request.receipt, []
    for field, source, sha256 in (
        ("init_sha256", request.image, receipt.init_sha256),
        ("mask_sha256", request.mask, receipt.mask_sha256),
    ):
        name = "image" if field == "init_sha256" else "mask"
        if (source is None) != (sha256 is None):
            reason = f"the receipt has one, so send `{name}` again" if sha256 else f"the receipt has no {name}"
            problems.append(FieldProblem(field, reason))
    if request.images and len(request.images) != len(receipt.seeds):
        problems.append(FieldProblem("seeds", f"are {len(receipt.seeds)}, but `images` are {len(request.images)}"))
    if inputs is not None:
        if receipt.init_sha256 is not None and inputs.sha256 != receipt.init_sha256:
            problems.append(FieldProblem("init_sha256", "`image` is another file"))
        if receipt.mask_sha256 is not None and inputs.mask_sha256 not in (None, receipt.mask_sha256):
            problems.append(FieldProblem("mask_sha256", "`mask` is another file"))
    return problems


def _facts(receipt: Receipt) -> dict[str, str]:
    facts = {
        "checkpoint_sha256": receipt.checkpoint_sha256,
        "device": receipt.device,
        "dtype": receipt.dtype,
        "buckets": ",".join(map(str, receipt.buckets)),
        **{f"versions.{name}": version for name, version in receipt.versions.items()},
        **{f"levers.{name}": value for name, value in receipt.levers.items()},
        **{f"loras.{lora.name}": lora.sha256 for lora in receipt.loras},
    }
    if receipt.refiner is not None:
        facts["refiner.sha256"] = receipt.refiner.sha256
    return facts
