"""Pixels: one product's picture into one frame. It knows no database, no network, no store; paths in, bytes out."""
