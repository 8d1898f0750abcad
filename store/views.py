"""The views of a store as SQL text: one view per table, over the recorded Parquet files.

`query` creates them with absolute paths when it connects, and so does the script that `unitscope views` prints for use
with DuckDB alone. No store keeps such a script: in a store from elsewhere it could hold any SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from store import layout, schema
from store.errors import UsageError

# `tail` is stored twice: sorted by unit, which the view prefers, and by image.
_FILES = {"tail": ("tail_by_unit", "tail_by_image")}
# The tables that each view reads. Either of those of `tail` will do, and the view reads the first that is there.
READS = {table.name: _FILES.get(table.name, (table.name,)) for table in schema.TABLES} | {
    "images": ("images", "rejected_images"),
    "rejected_images": ("images", "rejected_images"),
    "indexed_images": ("images",),
    "scan_rejections": ("rejected_images",),
}
_SQL_TYPES = {
    "name": "VARCHAR", "text": "VARCHAR", "bool": "BOOLEAN", "int16": "SMALLINT", "int32": "INTEGER",
    "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE",
}  # fmt: skip

Files = Mapping[str, Sequence[str]]


def tables(recorded: Iterable[str]) -> dict[str, list[str]]:
    """Group the recorded files of all datasets and runs by their table. Partials are left out."""
    files: dict[str, list[str]] = {}
    for relative in sorted(set(recorded)):
        name = table_of(relative)
        if name and not layout.is_partial(relative):
            files.setdefault(name, []).append(relative)
    return files


def table_of(relative: str) -> str | None:
    """Return the name of the table that a recorded file belongs to, or None if it belongs to none.

    Tables are datasets/D/NAME.parquet, runs/R/tables/NAME.parquet and all files in runs/R/tables/NAME/.
    """
    parts = PurePosixPath(relative).parts
    if not relative.endswith(".parquet"):
        return None
    if parts[0] == "datasets" and len(parts) == 3:
        return PurePosixPath(relative).stem
    if parts[0] == "runs" and len(parts) > 3 and parts[2] == "tables":
        return PurePosixPath(relative).stem if len(parts) == 4 else parts[3]
    return None


def statements(files: Files) -> list[str]:
    """Return CREATE VIEW statements for every table of the schema. A table without files gets an empty view."""
    made = []
    for table in schema.TABLES:
        name = {"images": "indexed_images", "rejected_images": "scan_rejections"}.get(table.name, table.name)
        paths: Sequence[str] = next((files[f] for f in _FILES.get(table.name, (table.name,)) if files.get(f)), ())
        made.append(f"CREATE VIEW {name} AS {_select(table, paths)}")
    return [*made, _images(bool(files.get("rejected_images"))), _rejected()]


def parquet(paths: Iterable[object], *options: str) -> str:
    """Return the DuckDB table function that reads exactly these files."""
    listed = f"[{', '.join(_literal(str(path)) for path in paths)}]"
    return f"read_parquet({', '.join([listed, 'hive_partitioning = false', *options])})"


def _select(table: schema.Table, paths: Sequence[str]) -> str:
    # Several datasets of one model repeat its row in `models`.
    distinct = "DISTINCT " if table.name == "models" and len(paths) > 1 else ""
    nothing = "SELECT " + ", ".join(f"NULL::{_SQL_TYPES[f.kind]} AS {_name(f.name)}" for f in table.fields)
    if not paths:
        return f"{nothing} WHERE false"
    source = parquet(paths)
    if any(f.added is not None for f in table.fields):  # an older file lacks the column
        source = f"({nothing} WHERE false UNION ALL BY NAME FROM {parquet(paths, 'union_by_name = true')})"
    columns = (_column(field) for field in table.fields)
    return f"SELECT {distinct}{', '.join(columns)} FROM {source}"


def _column(field: schema.Field) -> str:
    name = _name(field.name)
    return name if field.added is None else f"coalesce({name}, {str(field.added).lower()}) AS {name}"


def _images(rejections: bool) -> str:
    """Return the view of a dataset's images, in which pictures that a scan could not decode are rejected too."""
    if not rejections:
        return "CREATE VIEW images AS FROM indexed_images"
    return """CREATE VIEW images AS
        SELECT i.* REPLACE (CASE WHEN r.image_id IS NULL THEN i.status ELSE 'rejected' END AS status,
                            coalesce(r.reason, i.reason) AS reason)
        FROM indexed_images i LEFT JOIN (
            SELECT dataset, image_id, min(reason) AS reason FROM scan_rejections GROUP BY ALL
        ) r USING (dataset, image_id)"""


def _rejected() -> str:
    return """CREATE VIEW rejected_images AS
        SELECT dataset, image_id, path, reason FROM images WHERE status = 'rejected'"""


def _name(column: str) -> str:
    return f'"{column}"'


def pattern(path: str) -> str:
    """Return a path as the pattern that matches it alone, since DuckDB takes *, ? and [ in a path as a pattern.

    Raises UsageError if the path also has a backslash: DuckDB has no pattern that matches such a path.
    """
    if "\\" in path and any(sign in path for sign in "*?["):
        raise UsageError(f"{path}: DuckDB reads no path with a backslash beside *, ? or [: move the store elsewhere")
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)


def _literal(text: str) -> str:
    return "'" + pattern(text).replace("'", "''") + "'"
