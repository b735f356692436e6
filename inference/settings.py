"""The generator's settings: everything that an operator can turn, one class, validated at start."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints
from pydantic_settings import SettingsConfigDict
from yarl import URL

from models.settings import CommonSettings, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

EndpointName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]

BucketSizes = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]?(,[1-9][0-9]?)*$")]

HookPath = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]

KEY_FILE = "inference-key"


class InferenceSettings(CommonSettings):
    """Variables of the inference server and of the RunPod worker."""

    model_config = SettingsConfigDict(env_ignore_empty=True, populate_by_name=True)

    # who may call, and where
    inference_port: int = Field(8001, ge=0, le=65_535, description="Port of the inference server.")
    inference_key: SecretStr | None = Field(
        None, description="Key that callers send as bearer. Unset: `$IGEN_HOME/inference-key`, where that exists."
    )
    inference_auth: Literal["key", "none", "platform"] = Field(
        "key",
        description="`none` serves without a key; accepted on a loopback address only. `platform`: RunPod checks its "
        "own keys before a request comes here; accepted in a worker of RunPod serverless only.",
    )
    runpod_endpoint_id: str | None = Field(
        None, validation_alias="RUNPOD_ENDPOINT_ID", description="Set by RunPod in the workers of an endpoint."
    )
    endpoint: EndpointName = Field("igen", description="Endpoint name in `/v2/<endpoint>/...`.")

    # what draws
    checkpoint: str = Field(
        "tiny",
        min_length=1,
        description="A bundled name, a diffusers folder, a Hugging Face id or a `.safetensors` file.",
    )
    checkpoint_revision: str | None = Field(
        None, description="Commit of a Hugging Face checkpoint; demanded for one that has to be downloaded."
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="Where the checkpoint runs.")
    attention: Literal["auto", "xformers", "sdpa", "cudnn", "flash", "efficient"] = Field(
        "auto",
        description="Attention kernels. `auto`, here and below: on CUDA what `$IGEN_HOME/tuning.json` says (written "
        "by scripts/bench_gpu), else what is fastest when a checkpoint is loaded; on a CPU PyTorch's own. See "
        "docs/performance.md.",
    )
    compile: Literal["auto", "off", "regional", "whole"] = Field(
        "auto",
        description="`torch.compile` of the transformer blocks or of the whole UNet, on CUDA; `auto` is `off` unless "
        "the table says otherwise.",
    )
    cuda_graphs: Literal["auto", "on", "off"] = Field("auto", description="CUDA graphs of the UNet's calls.")
    fused_qkv: Literal["auto", "on", "off"] = Field(
        "auto", description="One product for queries, keys and values, on CUDA; not with xformers."
    )
    vae_precision: Literal["auto", "fp16", "fp32"] = Field(
        "auto", description="Of the VAE on CUDA; one that overflows in fp16 is rescaled so that it does not."
    )
    buckets: BucketSizes | None = Field(
        None, description="Batch sizes in rows on CUDA, with commas. Unset: the table's, else powers of two."
    )
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads of torch. Unset: torch's choice.")
    max_batch: int = Field(8, ge=1, le=64, description="Most pictures in one UNet call.")

    memory_mode: Literal["auto", "resident", "tiled", "offload"] = Field(
        "auto",
        description="`resident`: all of the checkpoint stays on the device; `tiled`: the VAE works tile by tile; "
        "`offload`: parts go to the device when they are used; `auto`: by the free memory.",
    )
    checkpoint_memory_mb: int | None = Field(
        None, ge=1, le=16_777_216, description="Most memory of loaded checkpoints, in MB. Unset: by the free memory."
    )
    lora_cache_mb: int = Field(512, ge=0, le=1_048_576, description="Most memory of LoRAs kept loaded, in MB.")

    # what happens to each finished picture
    safety_hook: HookPath | None = Field(
        None,
        description="`package.module:factory` of a safety checker, see docs/hooks.md. Unset: none is asked.",
    )
    watermark_hook: HookPath | None = Field(
        None, description="`package.module:factory` of a watermark, see docs/hooks.md. Unset: none."
    )

    # what is accepted
    max_waiting: int = Field(64, ge=1, le=100_000, description="Most pictures waiting for a slot; then 429.")
    min_side: int = Field(64, ge=64, le=4096, description="Smallest width and height in pixels.")
    max_side: int = Field(2048, ge=64, le=4096, description="Largest width and height in pixels.")
    max_pixels: int = Field(1_638_400, ge=4096, le=16_777_216, description="Largest width times height.")
    max_hires_pixels: int = Field(
        4_194_304,
        ge=4096,
        le=16_777_216,
        description="Largest width times height of a hires pass; never less than IGEN_MAX_PIXELS.",
    )
    max_input_pixels: int = Field(
        40_000_000,
        ge=4096,
        le=178_956_970,
        description="Largest width times height of a picture that a request brings.",
    )
    max_steps: int = Field(150, ge=1, le=150, description="Most denoising steps.")
    max_images: int = Field(8, ge=1, le=16, description="Most pictures in one job.")

    # how long and how much is remembered
    result_ttl_s: int = Field(1800, ge=1, le=604_800, description="Seconds that a result of `/run` is kept.")
    sync_result_ttl_s: int = Field(
        60, ge=1, le=604_800, description="Seconds that a result of `/runsync` without a key is kept."
    )
    max_jobs: int = Field(50_000, ge=10, le=10_000_000, description="Most jobs remembered, finished ones included.")
    max_results_mb: int = Field(512, ge=1, le=1_048_576, description="Most memory of finished results, in MB.")
    stream_chunk_bytes: int = Field(
        1_000_000,
        ge=1000,
        le=100_000_000,
        description="A picture larger than this is announced in `/stream` without pixels.",
    )
    drain_s: float = Field(25, ge=0, le=3600, description="Seconds that running jobs get to finish at a stop.")

    # what goes out
    webhook_concurrency: int = Field(8, ge=1, le=256, description="Webhook requests at once.")
    webhook_queue: int = Field(
        1000, ge=1, le=100_000, description="Webhooks waiting, retries included; then dropped."
    )
    webhook_retry_s: float = Field(10, ge=0, le=3600, description="Seconds between the three tries of a webhook.")
    webhook_timeout_s: float = Field(10, gt=0, le=300, description="Seconds that one webhook request may take.")
    upload_timeout_s: float = Field(60, gt=0, le=3600, description="Seconds that one picture's upload may take.")
    bucket_endpoint_url: str | None = Field(
        None,
        validation_alias="BUCKET_ENDPOINT_URL",
        description="S3 endpoint for pictures; set, they are uploaded and answered as links.",
    )
    bucket_access_key_id: SecretStr | None = Field(
        None, validation_alias="BUCKET_ACCESS_KEY_ID", description="Access key of that bucket."
    )
    bucket_secret_access_key: SecretStr | None = Field(
        None, validation_alias="BUCKET_SECRET_ACCESS_KEY", description="Secret key of that bucket."
    )
    bucket_name: str | None = Field(
        None, validation_alias="BUCKET_NAME", description="Bucket of the pictures. Unset: month and year as `11-26`."
    )

    # the RunPod worker alone
    worker_result_mb: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="Largest result of the RunPod worker in MB. Unset: RunPod's 20 for `/runsync`, 10 for `/run`.",
    )
    worker_progress_s: float = Field(
        1.0, ge=0.05, le=60, description="Least seconds between two progress updates of the RunPod worker."
    )

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """`IGEN_BUCKETS` as numbers of rows, ascending; empty where it is unset."""
        return tuple(sorted({int(size) for size in self.buckets.split(",")})) if self.buckets else ()

    @property
    def key_file(self) -> Path:
        """Where the key stands when the variable is unset."""
        return self.home / KEY_FILE


def is_loopback(bind: str) -> bool:
    """Whether only this machine can connect to the address."""
    if bind == "localhost":
        return True
    try:
        return ipaddress.ip_address(bind.strip("[]")).is_loopback
    except ValueError:
        return False


def resolve_key(settings: InferenceSettings) -> str | None:
    """The key that callers must send; None where the operator chose to serve without one.

    Raises:
        SettingsError: there is no key, or serving without one was asked for where others than RunPod reach it.

    """
    if settings.inference_auth == "none":
        if not is_loopback(settings.bind):
            raise SettingsError("IGEN_INFERENCE_AUTH: 'none' is accepted on a loopback IGEN_BIND only")
        return None
    if settings.inference_auth == "platform":
        if not settings.runpod_endpoint_id:
            raise SettingsError("IGEN_INFERENCE_AUTH: 'platform' is accepted in a worker of RunPod serverless only")
        return None
    key = settings.inference_key.get_secret_value().strip() if settings.inference_key else _key_from_file(settings)
    if not key:
        raise SettingsError(
            f"IGEN_INFERENCE_KEY: not set and {settings.key_file} does not exist or is empty; "
            "set a key, or IGEN_INFERENCE_AUTH=none on a loopback address"
        )
    return key


def _key_from_file(settings: InferenceSettings) -> str:
    try:
        return settings.key_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingsError(f"IGEN_INFERENCE_KEY: {settings.key_file} cannot be read ({problem})") from None


def check_settings(settings: InferenceSettings) -> None:
    """Refuse settings that contradict each other.

    Raises:
        SettingsError: naming the variables.

    """
    if settings.min_side > settings.max_side:
        raise SettingsError("IGEN_MIN_SIDE: larger than IGEN_MAX_SIDE")
    if settings.max_pixels < settings.min_side**2:
        raise SettingsError("IGEN_MAX_PIXELS: smaller than IGEN_MIN_SIDE squared, so no picture would be accepted")
    bucket = (settings.bucket_endpoint_url, settings.bucket_access_key_id, settings.bucket_secret_access_key)
    if any(bucket) and not all(bucket):
        raise SettingsError(
            "BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY: set all three or none"
        )
    if settings.bucket_endpoint_url is not None:
        host_and_port(settings.bucket_endpoint_url)


def host_and_port(endpoint: str) -> tuple[str, int]:
    """Where an S3 endpoint listens.

    Raises:
        SettingsError: it is no http or https URL.

    """
    try:
        url = URL(endpoint)
        host, port = url.host, url.port
    except ValueError:
        host, port = None, None
    if not host or not port or url.scheme not in ("http", "https"):
        raise SettingsError("BUCKET_ENDPOINT_URL: not an http or https URL")
    return host, port
