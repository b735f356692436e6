"""Which pictures may share a UNet call, and which call comes next. Pure functions over slots."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from inference.engine.slots import GroupKey

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inference.engine.slots import Slot, Ticket


def choose_members(running: Sequence[Slot], max_batch: int, max_rows: int) -> list[Slot]:
    """The slots of the next call: the group of the slot that has waited longest, longest waiting first.

    `running` must not be empty. A slot of two rows is taken even where `max_rows` is one: it cannot be split.
    """
    key = min(running, key=lambda slot: (slot.last_tick, slot.serial)).key
    group = sorted((slot for slot in running if slot.key == key), key=lambda slot: slot.last_tick)
    limit = key.bucket or max_rows
    members: list[Slot] = []
    rows = 0
    for slot in group:
        if not members or (rows + slot.rows <= limit and len(members) < max_batch):
            members.append(slot)
            rows += slot.rows
    return sorted(members, key=lambda slot: slot.serial)  # a steady order lets the batch's tensors be kept


def key_of(ticket: Ticket, index: int, alone: int = 0) -> GroupKey:
    """The group that a waiting picture would join, as far as its specification tells: bucket and tokens are 0."""
    spec = ticket.job.pictures[index]
    loras = tuple((use.name, use.scale) for use in spec.loras)
    return GroupKey(spec.height, spec.width, alone, 0, spec.checkpoint, loras)


def _alike(first: GroupKey, second: GroupKey) -> bool:
    """Whether two groups differ at most in their buckets and in the length of their texts."""
    return replace(first, bucket=0, tokens=0) == replace(second, bucket=0, tokens=0)


def group_size(running: Iterable[Slot], ticket: Ticket, index: int) -> int:
    """How many slots compete with this picture for its group's places."""
    if ticket.job.strict:
        return sum(1 for slot in running if slot.key.alone)
    key = key_of(ticket, index)
    return sum(1 for slot in running if _alike(slot.key, key))


def choose_bucket(
    key: GroupKey, rows: int, running: Iterable[Slot], waiting_rows: int, *, buckets: tuple[int, ...], max_rows: int
) -> int:
    """The bucket that a new slot keeps: one under way with room, else the least that holds what waits with it.

    Args:
        key: the slot's group with bucket 0.
        rows: rows that the slot takes.
        running: every slot under way.
        waiting_rows: rows of waiting pictures that could join.
        buckets: allowed sizes in rows, ascending; empty for no padding (the answer is then 0).
        max_rows: no more than this many.

    """
    if not buckets:
        return 0
    if key.alone:
        return rows
    taken: dict[int, int] = {}
    for slot in running:
        if replace(slot.key, bucket=0) == key:
            taken[slot.key.bucket] = taken.get(slot.key.bucket, 0) + slot.rows
    for bucket, used in taken.items():
        if used + rows <= bucket:
            return bucket
    wanted = max(rows, min(rows + waiting_rows, max_rows))
    return next((size for size in buckets if size >= wanted), buckets[-1])


def rows_waiting_for(key: GroupKey, waiting: Iterable[tuple[Ticket, int]]) -> int:
    """Rows of the waiting pictures that could be batched with a slot of this group."""
    rows = 0
    for ticket, index in waiting:
        if not ticket.job.strict and _alike(key_of(ticket, index), key):
            rows += 2 if ticket.job.pictures[index].guided else 1
    return rows
