"""Feeds as merchants write them, of any length."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SENTENCES = (
    "A light shoe for long distances, with a sole that gives back what you put in.",
    "Made of wool from one farm & dyed by hand.",
    "Größen 36 bis 47, auch in Weiß; fällt klein aus.",
    "Dishwasher safe, 350 ml, with a lid that stays where it is.",
)
RICH = """    <link rel="alternate" type="text/html" href="https://shop.example/{0}">https://shop.example/{0}</link>
    <g:additional_image_link>https://cdn.shop.example/pictures/{0}-2.jpg</g:additional_image_link>
    <g:additional_image_link>https://cdn.shop.example/pictures/{0}-3.jpg</g:additional_image_link>
    <g:shipping>
      <g:country>DE</g:country>
      <g:price>4.90 EUR</g:price>
    </g:shipping>
"""
KINDS = ("plain", "mixed", "cdata", "rich")


def write_feed(path: Path, entries: int, kind: str, seed: int = 1) -> None:
    """A merchant's feed of about 1 kB an entry.

    `kind`: `plain`, `mixed` (fields come and go), `cdata`, or `rich` (two links, one with attributes, more pictures,
    shipping with elements in it).
    """
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as out:
        out.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0">\n'
        )
        out.write("<channel>\n<title>Shop</title>\n")
        for number in range(entries):
            text = " ".join(draw.choices(SENTENCES, k=6))
            held = f"<![CDATA[{text}]]>" if kind == "cdata" else text.replace("&", "&amp;")
            sale = (
                f"    <g:sale_price>{number % 50}.49 EUR</g:sale_price>\n" if number % 3 and kind != "plain" else ""
            )
            more = RICH.format(number) if kind == "rich" else ""
            out.write(
                f"  <item>\n    <g:id>SKU-{number:08d}</g:id>\n    <g:title>Product {number} &amp; more</g:title>\n"
                f"    <g:description>{held}</g:description>\n"
                f"    <g:link>https://shop.example/products/{number}</g:link>\n"
                f"    <g:image_link>https://cdn.shop.example/pictures/{number}.jpg?w=1200</g:image_link>\n"
                f"    <g:price>{number % 90 + 10}.99 EUR</g:price>\n{sale}{more}"
                "    <g:availability>in stock</g:availability>\n"
                "    <g:condition>new</g:condition>\n    <g:brand>Example</g:brand>\n"
                f"    <g:gtin>{4000000000000 + number}</g:gtin>\n"
                "    <g:google_product_category>Apparel &gt; Shoes</g:google_product_category>\n  </item>\n"
            )
        out.write("</channel>\n</rss>\n")
