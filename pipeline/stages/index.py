"""Stage `index`: the ordered list of pictures with digests, sizes and classes."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import config as configs
from pipeline.data import indexing
from pipeline.job import Job, Shard, Stage
from store import layout, parquet, publish, schema
from store.errors import UsageError
from store.publish import Record


def _phases(job: Job) -> list[list[Shard]]:
    size = len(job.images) if job.record("index", "index") else len(job.entries)  # tars are listed once
    return [[Shard("index", size=size)]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    rows = indexing.index_source(job.source, job.entries, max(job.threads, 2), advance)
    bad = [(row.entry.path, row.reason) for row in rows if row.reason]
    indexing.refuse_too_many(bad, len(rows), job.config.dataset.max_bad_fraction)
    digest = indexing.index_digest(rows)
    source, root = _refuse_other_content(job, digest)
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
            "dataset": job.dataset, "source": source, "root": root,
            "images": [len(rows)], "rejected": [len(bad)], "digest": [digest],
        })  # fmt: skip
        facts = {"config": configs.to_toml(job.keys), "dataset": job.dataset, "digest": digest}
        facts |= {"listing": job.listing, "model": job.model.name, "weights": job.model.digest}
        return out.commit(facts | {"images": len(rows), "rejected": len(bad)})


def _refuse_other_content(job: Job, digest: str) -> tuple[str, str]:
    """Refuses another dataset or model under a name that is taken. Returns the dataset's `source` and `root`: of equal
    pictures in two places the first that was indexed keeps them, so that its files stay as they were committed."""
    place = job.source.text, job.source.root
    for record in publish.records(job.root, stage="index"):
        if record.facts["dataset"] == job.dataset:
            if record.facts["digest"] != digest:
                raise UsageError(job.other_pictures)
            row = parquet.read(job.root / layout.dataset_table(job.dataset, "datasets")).to_pylist()[0]
            place = row["source"], row["root"]
        if record.facts["model"] == job.model.name and record.facts["weights"] != job.model.digest:
            raise UsageError(
                f"{job.root} already holds a model {job.model.name!r} with other weights: "
                "give this one another `name` in [model]"
            )
    return place


STAGE = Stage("index", "img", _phases, _run)
