"""A product feed read entry by entry, and written again with other picture links.

Read in the order of the flow: `source` (bytes, gzip, encoding), `judge` (whether it is well-formed), `markup` (where
an entry begins and ends), `elements`, `fields` and `shapes` (what stands in it), `entries` (whether a product can be
made of it), `products` and `table` (the two kinds of feed), `reader` (the front door), `edit`, `repair` and `writer`
(the way out).
"""
