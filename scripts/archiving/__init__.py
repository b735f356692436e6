"""Database and store in one file, and back: what `scripts/backup` and `scripts/restore` do.

`archive` is the file, `databases` one snapshot of either kind of database, `references` the objects that its rows
name, `saving` and `restoring` the two directions.
"""
