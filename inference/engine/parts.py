"""A checkpoint's parts as modules, loaded through diffusers and transformers.

Every class is named here, none by the checkpoint; weights come from safetensors files alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inference.engine.layout import SCHEDULER_CONFIG
from inference.engine.libraries import quiet_libraries
from inference.engine.straight import module_of, read_tensors
from inference.engine.types import CheckpointError
from inference.engine.weights import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from inference.engine.layout import Kind
    from inference.engine.locate import Located


@dataclass(frozen=True, slots=True)
class Parts:
    """What a picture is drawn with, on the CPU as loaded; the UNet perhaps on its device already.

    A refiner's `text_encoder` is None, and so is its first tokenizer. A checkpoint that `requires_aesthetics_score`
    takes five numbers beside the prompt: original height and width, the crop's top and left, and the score.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    text_encoder_2: Any
    tokenizers: tuple[Any, Any]
    scheduler_config: Mapping[str, Any]
    zero_empty_prompt: bool
    kind: Kind = "base"
    requires_aesthetics_score: bool = False

    @property
    def used_tokenizers(self) -> tuple[Any, ...]:
        """Two, or a refiner's one."""
        return tuple(tokenizer for tokenizer in self.tokenizers if tokenizer is not None)

    @property
    def used_encoders(self) -> tuple[Any, ...]:
        """Two, or a refiner's one; the last one projects."""
        return (self.text_encoder_2,) if self.text_encoder is None else (self.text_encoder, self.text_encoder_2)


def load_parts(located: Located, dtype: torch.dtype, device: torch.device | None = None) -> Parts:
    """Read everything once. The VAE is read in float32 where it cannot be used in half precision.

    With a `device` the UNet, which is most of a checkpoint, is read straight onto it while the rest is loaded.

    Raises:
        CheckpointError: naming the part that cannot be loaded.
        torch.OutOfMemoryError: the UNet does not fit on the device.

    """
    quiet_libraries()
    index = read_json(located.folder / "model_index.json")
    layout = located.layout
    first = _tokenizer(located, "tokenizer") if "tokenizer" in layout.tokenizers else None
    tokenizers = (first, _tokenizer(located, "tokenizer_2"))
    upcast = read_json(located.folder / "vae" / "config.json").get("force_upcast", True)
    dtypes = dict.fromkeys(layout.parts, dtype) | {"vae": torch.float32 if upcast else dtype}
    if located.single_file is None:
        modules = _from_folders(located, dtypes, device)
    else:
        modules = _from_single_file(located, located.single_file, tokenizers, dtypes)
    return Parts(
        **{"text_encoder": None, **modules},
        tokenizers=tokenizers,
        scheduler_config=read_scheduler_config(located),
        zero_empty_prompt=bool(index.get("force_zeros_for_empty_prompt", True)),
        kind=layout.kind,
        requires_aesthetics_score=layout.requires_aesthetics_score,
    )


def _from_folders(located: Located, dtypes: Mapping[str, torch.dtype], device: torch.device | None) -> dict[str, Any]:
    if device is None:
        return {part: _from_folder(located, part, dtype) for part, dtype in dtypes.items()}
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_tensors, located.weights["unet"].files, device, dtypes["unet"])
        modules = {part: _from_folder(located, part, dtype) for part, dtype in dtypes.items() if part != "unet"}
        with _loading(located, "unet"):
            unet = module_of(_class_of("unet"), located.folder / "unet", reading.result())
    return modules | {"unet": _from_folder(located, "unet", dtypes["unet"]) if unet is None else unet}


def _from_folder(located: Located, part: str, dtype: torch.dtype) -> Any:
    options = {
        "variant": located.weights[part].variant,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
        "dtype": dtype,
    }
    with _loading(located, part):
        module, report = _class_of(part).from_pretrained(str(located.folder / part), **options)
    # the libraries fill what is missing with random numbers and only warn
    _refuse_missing(located, part, sorted(report["missing_keys"]))
    return module


def _class_of(part: str) -> Any:
    # imported here: seconds, and only after the libraries were made quiet
    import diffusers  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    classes = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
    }
    return classes[part]


def _from_single_file(
    located: Located, path: Path, tokenizers: tuple[Any, Any], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Any]:
    """UNet, VAE and text encoders out of one file in the original layout."""
    import diffusers  # noqa: PLC0415 - as above

    options = {"config": str(located.folder), "local_files_only": True}
    modules = {}
    for part in ("unet", "vae"):
        with _loading(located, part):
            modules[part] = _class_of(part).from_single_file(str(path), subfolder=part, dtype=dtypes[part], **options)
    with _loading(located, "text encoders"):
        pipeline = diffusers.StableDiffusionXLPipeline.from_single_file(
            str(path),
            **modules,
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            image_encoder=None,
            feature_extractor=None,
            add_watermarker=False,
            dtype=dtypes["text_encoder_2"],
            **({} if "text_encoder" in dtypes else {"text_encoder": None}),
            **options,
        )
    modules = {part: getattr(pipeline, part) for part in dtypes}
    for part, module in modules.items():
        # what the file lacks has no storage, which diffusers notices in its own classes alone
        _refuse_missing(located, part, [name for name, tensor in module.state_dict().items() if tensor.is_meta])
    return modules


def _refuse_missing(located: Located, part: str, missing: list[str]) -> None:
    if missing:
        raise CheckpointError(
            f"{located.name}: {part} lacks {len(missing)} of its weights, the first is {missing[0]}"
        )


def _tokenizer(located: Located, part: str) -> Any:
    from transformers import CLIPTokenizer  # noqa: PLC0415 - as above

    with _loading(located, part):
        return CLIPTokenizer.from_pretrained(str(located.folder / part), local_files_only=True)


def read_scheduler_config(located: Located) -> dict[str, Any]:
    """All settings of the checkpoint's scheduler, its class's defaults included."""
    import diffusers  # noqa: PLC0415 - as above

    config = read_json(located.folder / SCHEDULER_CONFIG) | dict(located.scheduler_settings)
    with _loading(located, "scheduler"):
        return dict(getattr(diffusers, config["_class_name"]).from_config(config).config)


@contextmanager
def _loading(located: Located, part: str) -> Iterator[None]:
    """Turns whatever the libraries throw at a broken file into a CheckpointError."""
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except NotImplementedError as problem:
        # a tensor without storage cannot be moved
        raise CheckpointError(
            f"{located.name}: {part} cannot be loaded: some of its weights are missing"
        ) from problem
    except Exception as problem:
        reason = str(problem) or type(problem).__name__
        raise CheckpointError(f"{located.name}: {part} cannot be loaded: {reason}") from problem
