"""What is needed to draw a job's pictures again, written down when they are done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.wire import Receipt, ReceiptHires, ReceiptLora, ReceiptRefiner

if TYPE_CHECKING:
    from inference.engine.types import EngineInfo, HiresPass, LoraUsed, RefinerPass
    from inference.infotext import DrawnWith
    from inference.plan import Plan


def receipt_of(plan: Plan, drawn: DrawnWith, buckets: list[int], pixels_sha256: list[str]) -> Receipt:
    """The receipt of a finished job; `buckets` and hashes are in the pictures' order."""
    first, info, inputs = plan.first, drawn.checkpoint, plan.inputs
    return Receipt(
        checkpoint=info.checkpoint,
        checkpoint_sha256=info.sha256,
        scheduler=first.scheduler,
        seeds=plan.seeds,
        prompt=first.prompt,
        negative_prompt=first.negative_prompt,
        width=first.width,
        height=first.height,
        num_inference_steps=first.steps,
        guidance_scale=first.guidance_scale,
        strict=plan.job.strict,
        device=info.device,
        dtype=info.dtype,
        buckets=buckets,
        versions=info.versions,
        levers=dict(info.levers),
        prompt_syntax=first.syntax,
        refiner=_refiner(first.refiner, drawn.refiner),
        loras=[_lora(lora) for lora in drawn.loras],
        hires=_hires(first.hires),
        strength=first.init.strength if first.init else None,
        init_sha256=inputs.sha256 if inputs else None,
        mask_sha256=inputs.mask_sha256 if inputs else None,
        output_format=plan.file.format,
        pixels_sha256=pixels_sha256,
    )


def _refiner(part: RefinerPass | None, info: EngineInfo | None) -> ReceiptRefiner | None:
    if part is None:
        return None
    return ReceiptRefiner(
        checkpoint=part.checkpoint,
        sha256=info.sha256 if info else "",
        steps=part.steps,
        switch_at=part.switch_at,
        negative_prompt=part.negative_prompt,
    )


def _lora(used: LoraUsed) -> ReceiptLora:
    return ReceiptLora(name=used.name, scale=used.scale, sha256=used.sha256)


def _hires(part: HiresPass | None) -> ReceiptHires | None:
    if part is None:
        return None
    return ReceiptHires(
        width=part.width, height=part.height, steps=part.steps, strength=part.strength, upscaler=part.upscaler
    )
