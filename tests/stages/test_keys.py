import hashlib

import pyarrow as pa

from stages.keys import key_column, make_key


def test_key_is_blake2b_of_the_three_fields() -> None:
    expected = hashlib.blake2b("cc3m\0http://a/é\0a caption".encode(), digest_size=16).hexdigest()
    assert make_key("cc3m", "http://a/é", "a caption") == expected
    assert make_key("cc3m", "u", None) == make_key("cc3m", "u", "")


def test_fields_cannot_run_into_one_another() -> None:
    assert make_key("a", "bc", "d") != make_key("ab", "c", "d")


def test_column_equals_row_by_row() -> None:
    urls, captions = ["u1", "u2", ""], ["x", None, "مرحبا"]
    for kind in (pa.string(), pa.large_string()):
        keys = key_column("s", pa.array(urls, kind), pa.chunked_array([pa.array(captions, kind)]))
        assert keys.to_pylist() == [make_key("s", u, c) for u, c in zip(urls, captions, strict=True)]
