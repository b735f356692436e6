"""The only door through which a process contacts an address that a caller supplied.

Webhooks, S3 endpoints, feeds and their pictures all go through `SafeFetcher`. Read in this order: `policy` (what a
URL may look like, no network), `addresses` (what "public" means), `connect` (the check after DNS and the one at
the socket), `body` (both caps), `download` (a body into a file), `client` (deadline and redirects).
"""

from models.fetch.addresses import is_public
from models.fetch.client import Fetched, SafeFetcher
from models.fetch.download import Downloaded
from models.fetch.errors import (
    FetchBlockedError,
    FetchError,
    FetchFailedError,
    FetchStorageError,
    FetchTimeoutError,
    FetchTooLargeError,
)
from models.fetch.policy import FetchPolicy, check_url, parse_allow_hosts

__all__ = [
    "Downloaded",
    "FetchBlockedError",
    "FetchError",
    "FetchFailedError",
    "FetchPolicy",
    "FetchStorageError",
    "FetchTimeoutError",
    "FetchTooLargeError",
    "Fetched",
    "SafeFetcher",
    "check_url",
    "is_public",
    "parse_allow_hosts",
]
