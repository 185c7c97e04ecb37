"""Arrow schemas of the tables between stages (docs/tables.md says what each column means)."""

from __future__ import annotations

import pyarrow as pa

CAPTION = pa.struct([("text", pa.string()), ("source", pa.string()), ("origin", pa.string())])
ROW = pa.struct([("file", pa.string()), ("row_group", pa.int32()), ("row", pa.int64())])
IMAGE = pa.struct([("tar", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])

COMMON = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("url", pa.string()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
"""What every stage keeps."""

KEYWORDS = pa.schema(
    [
        ("keywords", pa.list_(pa.string())),
        ("row", ROW),
        ("captions", pa.list_(CAPTION)),
        ("licence", pa.string()),
        ("page", pa.string()),
    ]
)

DOWNLOAD = pa.schema(
    [
        ("http_status", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("phash", pa.uint64()),
        ("thumbnail", pa.binary()),
        ("image", IMAGE),
        ("fetched_at", pa.timestamp("us", tz="UTC")),
        ("attempts", pa.int32()),
        ("honoured", pa.string()),
    ]
)

DEDUP = pa.schema(
    [
        ("cluster", pa.string()),
        ("component", pa.string()),
        ("test_item", pa.string()),
        ("test_match", pa.string()),
    ]
)
"""`cluster` is the kept twin's key; `component` names the connected component of twins, kept or not; `test_item` is
what the row matches of a test set, and `test_match` how: `bytes`, `image` or `caption`."""

OUTLIERS = pa.schema(
    [
        ("vlm_score", pa.float32()),
        ("detector_score", pa.float32()),
        ("detector_logit", pa.float32()),
        ("caption_similarity", pa.float32()),
    ]
)


def extend(base: pa.Schema, *more: pa.Schema) -> pa.Schema:
    """`base` and the columns of `more` that it lacks, in order."""
    fields = {field.name: field for field in base}
    for schema in more:
        for field in schema:
            fields.setdefault(field.name, field)
    return pa.schema(list(fields.values()))


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`: missing ones are null, others are cast or left out."""
    columns = []
    for field in schema:
        index = table.schema.get_field_index(field.name)
        if index < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
        else:
            columns.append(table.column(index).cast(field.type))
    return pa.table(columns, schema=schema)
