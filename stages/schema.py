"""Arrow schemas of the tables between stages (docs/tables.md says what each column means)."""

from __future__ import annotations

import pyarrow as pa

CAPTION = pa.struct([("text", pa.string()), ("source", pa.string()), ("origin", pa.string())])
PART = pa.struct(
    [("text", pa.string()), ("origin", pa.string()), ("fact", pa.string()), ("orientation_dependent", pa.bool_())]
)
ROW = pa.struct([("file", pa.string()), ("row_group", pa.int32()), ("row", pa.int64())])
IMAGE = pa.struct([("tar", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
BOUNDS = pa.struct([(side, pa.float64()) for side in ("left", "bottom", "right", "top")])
OBJECT = pa.struct([("label", pa.string()), *((name, pa.float64()) for name in ("x", "y", "width", "height"))])
NATIVE = pa.struct([("path", pa.string()), ("size", pa.int64())])
WINDOW = pa.struct([(name, pa.int32()) for name in ("x", "y", "width", "height")])
ACQUISITION = pa.struct(
    [
        *(
            (name, pa.float64())
            for name in ("cloud_cover", "off_nadir", "sun_azimuth", "sun_elevation", "target_azimuth")
        ),
        ("scan_direction", pa.string()),
    ]
)
"""Percent and degrees."""

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

INGEST = pa.schema(
    [
        *(
            DOWNLOAD.field(name)
            for name in ("width", "height", "format", "bytes", "sha256", "phash", "thumbnail", "image")
        ),
        KEYWORDS.field("captions"),
        KEYWORDS.field("licence"),
        ("labels", pa.list_(pa.string())),
        ("location", pa.string()),
        ("path", pa.string()),
        ("sensor", pa.string()),
        ("platform", pa.string()),
        ("modality", pa.string()),
        ("acquired_at", pa.timestamp("us", tz="UTC")),
        ("processing_level", pa.string()),
        ("bands", pa.list_(pa.string())),
        ("crs", pa.string()),
        ("bounds", BOUNDS),
        ("stretch", pa.string()),
        ("official_split", pa.string()),
        ("country", pa.string()),
        ("country_code", pa.string()),
        ("place", pa.string()),
        ("place_km", pa.float64()),
        ("season", pa.string()),
        ("month", pa.int32()),
        ("year", pa.int32()),
        ("latitude", pa.float64()),
        ("longitude", pa.float64()),
        ("utm_zone", pa.string()),
        ("gsd_m", pa.float64()),
        ("pixel_x_m", pa.float64()),
        ("pixel_y_m", pa.float64()),
        ("objects", pa.list_(OBJECT)),
        ("acquisition", ACQUISITION),
        ("window", WINDOW),
        ("native", pa.list_(NATIVE)),
        ("caption_parts", pa.list_(PART)),
    ]
)
"""`path` is the file (or patch folder) that the image came from, `window` the tile's place in it; `country` is an
English name, or `offshore`; `bounds` are in the units of `crs`; `objects` are annotated boxes in pixels of the image;
`acquisition` describes the whole pass of the sensor, not this image; `native` are the files that a view was made of;
`caption_parts` are those of an earlier `captions`, in whose shards the image lay."""

DEDUP = pa.schema(
    [
        ("cluster", pa.string()),
        ("component", pa.string()),
        ("test_item", pa.string()),
        ("test_match", pa.string()),
    ]
)
"""`cluster` is the kept twin's key; `component` names the connected component of twins, kept or not; `test_item` is
what the row matches of a test set, and `test_match` how: `bytes`, `image`, `embedding` or `caption`."""

OUTLIERS = pa.schema(
    [
        ("vlm_score", pa.float32()),
        ("detector_score", pa.float32()),
        ("detector_logit", pa.float32()),
        ("caption_similarity", pa.float32()),
    ]
)

CANDIDATE = pa.struct(
    [
        ("text", pa.string()),
        *((name, pa.float32()) for name in ("score", "rerank", "rotation_mean", "rotation_variance")),
        ("reason", pa.string()),
    ]
)

CAPTIONS = pa.schema(
    [
        ("candidates", pa.list_(CANDIDATE)),
        ("top_caption", pa.string()),
        ("rotation_invariant_caption", pa.string()),
        ("meta_caption", pa.string()),
        INGEST.field("caption_parts"),
        ("caption_tokens", pa.int32()),
        ("image_class", pa.string()),
        ("caption_class", pa.string()),
        KEYWORDS.field("captions"),
    ]
)
"""`caption_parts` make up `caption`; a part is `orientation_dependent` when turning the image would falsify it. The
classes are zero-shot, among the labels of the source."""

FEATURES = pa.schema([("features", pa.struct([("file", pa.string()), ("row", pa.int64())]))])
"""Where an image's features lie: a parquet file relative to the root, and the row in it."""


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
