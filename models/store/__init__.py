"""Where pictures are kept: a folder of this machine, or an S3 bucket; and uploads to a caller's own bucket.

`open_store` makes the store that `IGEN_STORE_URL` names. Read on in `base` (what a store promises), `local`, `s3`,
`upload` (a caller's bucket, contacted only through the safe fetch).
"""

from models.store.base import NewObject, ObjectInfo, ObjectStore
from models.store.errors import InvalidKeyError, ObjectMissingError, StoreError
from models.store.keys import check_key, content_key
from models.store.local import LocalObjects
from models.store.open import open_store
from models.store.s3 import S3Objects
from models.store.upload import PresignTarget, presign, upload_presigned

__all__ = [
    "InvalidKeyError",
    "LocalObjects",
    "NewObject",
    "ObjectInfo",
    "ObjectMissingError",
    "ObjectStore",
    "PresignTarget",
    "S3Objects",
    "StoreError",
    "check_key",
    "content_key",
    "open_store",
    "presign",
    "upload_presigned",
]
