"""diffusers and transformers, made quiet: a server's log is read by machines."""

from __future__ import annotations


def quiet_libraries() -> None:
    """No progress bars and no advice on standard error.

    To be called before the first model class of either library is imported: transformers gives its advice about
    packages that it would like to find, such as torchvision, at import.
    """
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - importing is costly

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # the hub's too

    from diffusers.utils import logging as diffusers_logging  # noqa: PLC0415

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
