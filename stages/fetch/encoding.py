"""Content-Encodings that we did not ask for, undone within a limit of bytes."""

from __future__ import annotations

import zlib

import pyarrow as pa

MOST_LAYERS = 2
"""Encodings on top of each other; a body in more of them stays as it is, which is no image."""
_STREAMS = {"br": "brotli", "zstd": "zstd"}


class TooLargeError(Exception):
    """What the bytes unpack to is beyond the limit."""

    def __init__(self, beginning: bytes) -> None:
        super().__init__(f"more than {len(beginning)} bytes")
        self.beginning = beginning
        """As much as is within the limit."""


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding; what is not encoded as it says stays as it is.

    No more than `limit` bytes, and one decoder's window, are ever held beside the body.

    Raises:
        TooLargeError: there are more than `limit` of them.
    """
    layers = [name.strip().lower() for name in encoding.split(",") if name.strip()]
    if len(layers) > MOST_LAYERS:
        return body
    for name in reversed(layers):
        plain = _inflated(body, name, limit + 1)
        if len(plain) > limit:
            raise TooLargeError(plain[:limit])
        body = plain
    return body


def _inflated(body: bytes, encoding: str, most: int) -> bytes:
    """At most the first `most` bytes."""
    try:
        if encoding in ("gzip", "x-gzip", "deflate"):
            return zlib.decompressobj(wbits=47).decompress(body, most)  # zlib or gzip, whichever the header says
        if encoding in _STREAMS:
            with pa.input_stream(pa.py_buffer(body), compression=_STREAMS[encoding]) as stream:
                return bytes(stream.read(most))
    except (zlib.error, OSError):
        return body
    return body
