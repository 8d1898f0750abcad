"""Stage `index`: the ordered list of pictures with digests, sizes and classes."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import config as configs
from pipeline.data import indexing
from pipeline.data.sources import Entry
from pipeline.job import Job, Shard, Stage
from store import layout, parquet, publish, schema
from store.errors import UsageError
from store.publish import Record


def _phases(job: Job) -> list[list[Shard]]:
    return [[Shard("index", size=len(_entries(job)))]]


def _entries(job: Job) -> list[Entry]:
    return indexing.limited(job.source.entries, job.config.dataset.limit, job.config.dataset.limit_per_class)


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    rows = indexing.index_source(job.source, _entries(job), max(job.threads, 2), advance)
    bad = [(row.entry.path, row.reason) for row in rows if row.reason]
    indexing.refuse_too_many(bad, len(rows), job.config.dataset.max_bad_fraction)
    digest = indexing.index_digest(rows)
    _refuse_other_content(job, digest)
    classes = sorted({(c.index, c.synset, c.label) for row in rows if (c := row.entry.label)}, key=lambda c: c[0])
    with job.publication("index", shard.name) as out:
        parquet.write_columns(
            out.path(layout.dataset_table(job.dataset, "images")),
            schema.IMAGES,
            indexing.images_columns(job.dataset, rows),
        )
        parquet.write_columns(out.path(layout.dataset_table(job.dataset, "classes")), schema.CLASSES, {
            "dataset": job.dataset, "class_index": [c[0] for c in classes],
            "synset": [c[1] for c in classes], "label": [c[2] for c in classes],
        })  # fmt: skip
        parquet.write_columns(out.path(layout.dataset_table(job.dataset, "datasets")), schema.DATASETS, {
            "dataset": job.dataset, "source": job.source.text, "root": job.source.root,
            "images": [len(rows)], "rejected": [len(bad)], "digest": [digest],
        })  # fmt: skip
        facts = {"config": configs.to_toml(job.keys), "dataset": job.dataset, "digest": digest}
        return out.commit(facts | {"images": len(rows), "rejected": len(bad)})


def _refuse_other_content(job: Job, digest: str) -> None:
    for record in publish.records(job.root, stage="index"):
        if record.facts.get("dataset") == job.dataset and record.facts.get("digest") != digest:
            raise UsageError(
                f"{job.root} already holds a dataset {job.dataset!r} with other pictures: "
                "give this one another `name` in [dataset]"
            )


STAGE = Stage("index", "img", _phases, _run)
