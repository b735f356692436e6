from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import update

from models.db import utc_now
from models.tables import Run
from tests.support.seeded_run import seed_run

if TYPE_CHECKING:
    from tests.gateway.conftest import RunningGateway

HOOK = "http://hooks.example.com/igen"


async def test_the_secret_is_the_owners_and_can_be_changed(framing: RunningGateway, other_key: str) -> None:
    frame = await framing.frame(webhook_url=HOOK)
    path = f"/api/frames/{frame['id']}/webhook-secret"
    first = (await framing.request("GET", path)).json["secret"]
    assert first.startswith("whsec_")
    assert (await framing.request("GET", path)).json["secret"] == first
    for method in ("GET", "POST"):
        assert (await framing.request(method, path, key=other_key)).status == 404
    renewed = await framing.request("POST", path)
    assert renewed.json["secret"] != first
    assert (await framing.request("GET", path)).json == renewed.json
    assert first not in str((await framing.request("GET", f"/api/frames/{frame['id']}")).json)
    rows = await framing.log(6)
    assert first not in "".join(str(row.response_body) for row in rows)


async def test_a_run_says_what_became_of_its_webhook(framing: RunningGateway) -> None:
    frame = await framing.frame()
    run = await seed_run(framing.services.db, framing.services.store, frame["id"])
    path = f"/api/frames/{frame['id']}/runs/{run.id}"

    async def told(**values: object) -> object:
        async with framing.services.db.write() as session:
            await session.execute(update(Run).values(**values))
        return (await framing.request("GET", path)).json["webhook"]

    assert await told(webhook_attempts=0) is None
    pending = await told(snapshot={**run.snapshot, "webhook_url": HOOK})
    assert pending == {"state": "pending", "attempts": 0, "error": None, "next_at": None, "ended_at": None}
    failed = await told(webhook_attempts=10, webhook_error="The receiver answered 500.", webhook_sent_at=utc_now())
    assert isinstance(failed, dict)
    assert (failed["state"], failed["error"]) == ("given_up", "The receiver answered 500.")
    delivered = await told(webhook_error=None)
    assert isinstance(delivered, dict)
    assert delivered["state"] == "delivered"
