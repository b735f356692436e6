"""What can go wrong with a fetch. No message holds an address that DNS gave, a path or a query string."""

from __future__ import annotations

from models.errors import IgenError


class FetchError(IgenError):
    """Root of all failures to fetch a caller-supplied address."""

    status = 502
    code = "fetch_failed"
    report = False
    default_message = "The address could not be fetched."


class FetchBlockedError(FetchError):
    """The address, or one that it redirects to, is one that this server does not contact."""

    status = 422
    code = "fetch_blocked"
    default_message = "This address may not be fetched."


class FetchTimeoutError(FetchError):
    """The other side was too slow: to connect, or to finish before the total deadline."""

    status = 504
    code = "fetch_timeout"
    retryable = True
    default_message = "The address did not answer in time."


class FetchTooLargeError(FetchError):
    """The answer is over the cap on wire bytes or on decoded bytes. 502, since the other side sent it."""

    code = "fetch_too_large"
    default_message = "The answer is too large."


class FetchFailedError(FetchError):
    """DNS, connect, TLS or protocol failed, or the content encoding is broken or unknown."""

    retryable = True


class FetchStorageError(FetchError):
    """The answer could not be written to this machine's disk: it is full, or the folder is gone."""

    status = 500
    code = "fetch_not_stored"
    retryable = True
    report = True
    default_message = "The answer could not be stored on this server."
