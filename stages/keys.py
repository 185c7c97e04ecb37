"""A sample's key: what it is called from the first stage to the shards, whatever is done to it."""

from __future__ import annotations

import hashlib

import pyarrow as pa

KEY_BYTES = 16
_SEPARATOR = b"\x00"


def make_key(source: str, url: str, caption: str | None) -> str:
    """32 hex digits: blake2b-128 of source, NUL, url, NUL, caption as read (empty when none)."""
    parts = (source, url, caption or "")
    data = _SEPARATOR.join(part.encode("utf-8", "surrogatepass") for part in parts)
    return hashlib.blake2b(data, digest_size=KEY_BYTES).hexdigest()


def key_column(source: str, urls: pa.Array | pa.ChunkedArray, captions: pa.Array | pa.ChunkedArray) -> pa.Array:
    """`make_key` for the rows of two string columns of equal length; a null counts as empty."""
    seed = hashlib.blake2b(source.encode() + _SEPARATOR, digest_size=KEY_BYTES)
    keys = []
    for url, caption in zip(_bytes(urls), _bytes(captions), strict=True):
        digest = seed.copy()
        digest.update((url or b"") + _SEPARATOR + (caption or b""))
        keys.append(digest.hexdigest())
    return pa.array(keys, pa.string())


def _bytes(column: pa.Array | pa.ChunkedArray) -> list[bytes | None]:
    kind = pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
    values: list[bytes | None] = column.cast(kind).to_pylist()
    return values
