"""What can go wrong between here and RunPod, in words that an operator can act on."""

from __future__ import annotations

import re
from http import HTTPStatus

KEYS = "https://console.runpod.io/user/settings"
QUOTA = re.compile(r"quota|worker limit|max(imum)?[ _]?workers", re.IGNORECASE)
BALANCE = re.compile(r"\bbalance\b|funds|\bcredits?\b|payment|spend", re.IGNORECASE)
REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY)
SERVER_ERROR = 500
STATUSES = {
    401: f"RunPod does not accept the key in RUNPOD_API_KEY (wrong, expired or revoked). Make one at {KEYS}.",
    403: f"The key in RUNPOD_API_KEY may not do {{call}}: give it read and write access at {KEYS}.",
    404: "RunPod does not know what {call} asks for.",
    429: "RunPod takes no more calls for now; run the same command again in a minute.",
}


class DeployError(Exception):
    """The deployment cannot go on; the message is for the operator."""


def explain(status: int, detail: str, call: str) -> str:
    """Say what an answer of RunPod's API means and what to do.

    Args:
        status: the HTTP status, 400 or more.
        detail: RunPod's own words.
        call: method and path, for the operator's search in RunPod's documentation.

    """
    said = f"RunPod said: {detail}" if detail else "RunPod gave no reason"
    refusal = _account(status, detail) or STATUSES.get(status)
    if refusal is None and status >= SERVER_ERROR:
        refusal = "RunPod's API failed at {call}. Run the same command again: it continues."
    refusal = refusal or "RunPod refused {call}."
    return f"{refusal.format(call=call)} {said} (HTTP {status})."


def _account(status: int, detail: str) -> str | None:
    """What the account lacks. RunPod has no status of its own for it, so its words decide."""
    if status in REFUSALS and QUOTA.search(detail):
        return (
            "The account has not that many workers left: lower max_workers in runpod.toml (or --workers-max) or that "
            "of another endpoint, or ask RunPod for a larger quota."
        )
    if status == HTTPStatus.PAYMENT_REQUIRED or (status in REFUSALS and BALANCE.search(detail)):
        return "The account cannot pay for this: add credit or raise its spending limit."
    return None
