"""The views of a store as SQL text: one a table, over the recorded Parquet files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from store import schema
from store.errors import UsageError

from .catalog import Catalog

# `tail` lies in the store twice: sorted by unit (the view) and by image.
_FILES = {"tail": ("tail_by_unit", "tail_by_image")}
_SQL_TYPES = {
    "name": "VARCHAR", "text": "VARCHAR", "bool": "BOOLEAN", "int16": "SMALLINT", "int32": "INTEGER",
    "int64": "BIGINT", "float32": "FLOAT", "float64": "DOUBLE",
}  # fmt: skip


def statements(catalog: Catalog) -> list[str]:
    """CREATE VIEW for every table of the schema; one whose files do not exist yet is an empty table."""
    made = []
    for table in schema.TABLES:
        name = {"images": "indexed_images", "rejected_images": "scan_rejections"}.get(table.name, table.name)
        made.append(f"CREATE VIEW {name} AS {_select(table, _paths(catalog, table.name))}")
    return [*made, _images(bool(catalog.table("rejected_images"))), _rejected()]


def parquet(paths: Iterable[Path]) -> str:
    """A table function over exactly these files."""
    return f"read_parquet([{', '.join(_literal(path) for path in paths)}], hive_partitioning = false)"


def _paths(catalog: Catalog, name: str) -> tuple[Path, ...]:
    return next((found for file in _FILES.get(name, (name,)) if (found := catalog.table(file))), ())


def _select(table: schema.Table, paths: Sequence[Path]) -> str:
    # Several datasets of one model repeat its row in `models`.
    distinct = "DISTINCT " if table.name == "models" and len(paths) > 1 else ""
    if paths:
        return f"SELECT {distinct}{', '.join(_name(c) for c in table.columns)} FROM {parquet(paths)}"
    return (
        "SELECT " + ", ".join(f"NULL::{_SQL_TYPES[f.kind]} AS {_name(f.name)}" for f in table.fields) + " WHERE false"
    )


def _images(rejections: bool) -> str:
    """The dataset's images with what a scan could not decode folded in."""
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


def _literal(path: Path) -> str:
    text = str(path)
    if any(c in text for c in "*?["):
        raise UsageError(f"{text}: a path with *, ? or [ reads as a pattern in DuckDB: move the store elsewhere")
    return "'" + text.replace("'", "''") + "'"
