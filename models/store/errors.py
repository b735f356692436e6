"""What can go wrong with the object store. No message holds a path of this machine, an endpoint or a credential."""

from __future__ import annotations

from models.errors import IgenError


class StoreError(IgenError):
    """The store cannot do it now: full, not writable, not reachable, or it refused our credentials."""

    status = 503
    code = "store_unavailable"
    retryable = True
    default_message = "The object store is not available."


class ObjectMissingError(StoreError):
    """There is no object under this key."""

    status = 404
    code = "not_found"
    retryable = False
    report = False
    default_message = "There is no such object."


class InvalidKeyError(ObjectMissingError):
    """The key is not one that any object can have; for a caller the same as a missing one."""
