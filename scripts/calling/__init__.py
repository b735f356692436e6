"""A gateway as its callers reach it: `access` (address and key), `gateway` (requests), `folder` (what comes out)."""
