"""The gateway: HTTP in front of the generators. It counts and keeps every picture exactly once.

A request goes through the modules in this order: middleware → auth → generate → ledger → forwarder → backend →
pictures, and comes back as an answer; media serves the stored pictures; recovery finishes what a dead process left.
"""
