"""One UNet call for a batch of pictures that may differ in prompt, step, guidance, scheduler and seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inference.engine.samplers import scale_inputs, step_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from inference.engine.slots import Slot


class StepBatch:
    """The tensors of a set of slots that stay the same from tick to tick while the set and its passes do.

    Rows of the UNet's batch: every slot with its prompt, then every guided slot with its negative prompt, then
    copies of the first row up to `bucket`.
    """

    def __init__(self, slots: Sequence[Slot], bucket: int, device: torch.device, dtype: torch.dtype) -> None:
        """`bucket` is the number of rows, at least what the slots take."""
        self.slots = tuple(slots)
        self.passes = tuple(slot.current for slot in slots)
        self.bucket = bucket
        self._device = device
        self._dtype = dtype
        self.latents = torch.stack([slot.latents for slot in slots])
        self._guided = [i for i, slot in enumerate(slots) if slot.guided]
        filled = len(slots) + len(self._guided)
        self._rows = [*range(len(slots)), *self._guided, *([0] * (bucket - filled))]
        embeddings = [each.positive for each in self.passes]
        embeddings += [each.negative for each in self.passes if each.negative is not None]
        embeddings += [embeddings[0]] * (bucket - filled)
        self._states = torch.stack([item.states for item in embeddings])
        self._conditions = {
            "text_embeds": torch.stack([item.pooled for item in embeddings]),
            "time_ids": self._time_ids(bucket - filled),
        }
        scales = [slots[i].spec.guidance_scale for i in self._guided]
        self._scale = torch.tensor(scales, dtype=torch.float32, device=device).view(-1, 1, 1, 1)
        self._row_index = torch.tensor(self._rows, device=device)
        self._guided_index = torch.tensor(self._guided, device=device)

    def _time_ids(self, padding: int) -> Tensor:
        rows = [each.positive_ids for each in self.passes]
        rows += [self.passes[i].negative_ids for i in self._guided]
        rows += [rows[0]] * padding
        return torch.tensor(rows, dtype=self._dtype, device=self._device)

    def holds(self, slots: Sequence[Slot], bucket: int) -> bool:
        """Whether this batch is of exactly these slots, in this order, in these passes, in this bucket."""
        return (
            bucket == self.bucket
            and self.slots == tuple(slots)
            and all(slot.current is each for slot, each in zip(self.slots, self.passes, strict=True))
        )

    def step(self, unet: Any) -> None:
        """Move every slot one step on."""
        samplers = [each.sampler for each in self.passes]
        shown = [i for i, slot in enumerate(self.slots) if slot.wants_preview]
        times = torch.tensor([sampler.timesteps[sampler.index] for sampler in samplers], dtype=torch.float32)
        times = times.to(self._device, non_blocking=True)
        scaled = scale_inputs(samplers, self.latents)
        output = unet(
            scaled.to(self._dtype)[self._row_index],
            times[self._row_index],
            encoder_hidden_states=self._states,
            added_cond_kwargs=self._conditions,
            return_dict=False,
        )[0].float()
        guided = self._guide(output)
        for i in shown:
            self.slots[i].clean = self.passes[i].loaded.clean(
                samplers[i], scaled[i], guided[i], samplers[i].timesteps[samplers[i].index]
            )
        self.latents = step_all(samplers, guided, self.latents, [slot.generator for slot in self.slots])
        self._keep_outside_masks()
        for slot, latents in zip(self.slots, self.latents.unbind(), strict=True):
            slot.latents = latents
            slot.bucket_used = max(slot.bucket_used, self.bucket)

    def _guide(self, output: Tensor) -> Tensor:
        """Classifier-free guidance (Ho & Salimans 2022) in float32 for the slots that use it."""
        count = len(self.slots)
        prompted = output[:count]
        if not self._guided:
            return prompted
        unprompted = output[count : count + len(self._guided)]
        if len(self._guided) == count:
            return unprompted + self._scale * (prompted - unprompted)
        mixed = prompted.clone()
        mixed[self._guided_index] = unprompted + self._scale * (prompted[self._guided_index] - unprompted)
        return mixed

    def _keep_outside_masks(self) -> None:
        """Where an inpainted picture is not drawn anew, set the old one, as noisy as the step just reached."""
        for i, each in enumerate(self.passes):
            if (kept := each.inpaint) is not None:
                old = each.sampler.noised(kept.original, kept.noise)
                self.latents[i] = kept.mask * self.latents[i] + (1 - kept.mask) * old
