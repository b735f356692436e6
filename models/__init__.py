"""The data model that every IGen process shares: wire contracts, tables, errors, and the two doors outside.

`models` holds no machine-learning weights. Those are called *checkpoints* here and belong to `inference`.
This package imports none of the other packages and never torch.
"""
