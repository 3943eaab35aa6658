"""Flat buffers and shards, and the canonical sum over them."""
