"""Stage `index`: write the ordered list of pictures with digests, sizes and classes."""

from __future__ import annotations

from collections.abc import Callable

from pipeline import config as configs
from pipeline.data import indexing
from pipeline.job import Expected, Job, Shard, Stage
from pipeline.runtime.progress import say
from store import commits, layout, parquet, schema
from store.commits import Record
from store.errors import UsageError


def _phases(job: Job) -> list[list[Shard]]:
    # A committed index gives the number of pictures without listing the tar files again.
    size = len(job.dataset.images) if job.store.record("index", "index") else len(job.dataset.entries)
    return [[Shard("index", size=size)]]


def _run(job: Job, shard: Shard, advance: Callable[[int], None]) -> Record:
    rows = indexing.index_source(job.dataset.source, job.dataset.entries, max(job.runtime.threads, 2), advance)
    if counted := indexing.left_out_text(job.dataset.source):
        say(f"dataset {job.dataset.name}: {counted}")
    bad = [(row.entry.path, row.reason) for row in rows if row.reason]
    indexing.refuse_too_many(bad, len(rows), job.spec.config.dataset.max_bad_fraction)
    digest = indexing.index_digest(rows)
    source, root = _refuse_other_content(job, digest)
    classes = sorted({(c.index, c.synset, c.label) for row in rows if (c := row.entry.label)}, key=lambda c: c[0])

    def confirm() -> None:
        if _refuse_other_content(job, digest) != (source, root):
            raise UsageError(f"{job.store.root}: another run has indexed these pictures from elsewhere: run again")

    with job.store.publication("index", shard.name, confirm) as out:
        parquet.write_columns(
            out.path(layout.dataset_table(job.dataset.name, "images")),
            schema.IMAGES,
            indexing.images_columns(job.dataset.name, rows),
        )
        parquet.write_columns(out.path(layout.dataset_table(job.dataset.name, "classes")), schema.CLASSES, {
            "dataset": job.dataset.name, "class_index": [c[0] for c in classes],
            "synset": [c[1] for c in classes], "label": [c[2] for c in classes],
        })  # fmt: skip
        parquet.write_columns(out.path(layout.dataset_table(job.dataset.name, "datasets")), schema.DATASETS, {
            "dataset": job.dataset.name, "source": source, "root": root,
            "images": [len(rows)], "rejected": [len(bad)], "digest": [digest],
        })  # fmt: skip
        facts = {"config": configs.to_toml(job.spec.keys), "dataset": job.dataset.name, "digest": digest}
        facts |= {"listing": job.dataset.listing, "model": job.spec.model.name, "weights": job.spec.model.digest}
        return out.commit(facts | {"images": len(rows), "rejected": len(bad)})


def _refuse_other_content(job: Job, digest: str) -> tuple[str, str]:
    """Return the `source` and `root` of the dataset. Raises UsageError if a name is taken.

    A name is taken if the store holds another dataset under it, or a model with other weights. If the store holds the
    same pictures from elsewhere, the `source` and `root` that were indexed first are returned, so that the committed
    files stay as they are.
    """
    origin = job.dataset.source.text, job.dataset.source.root
    for record in commits.records(job.store.root, stage="index"):
        if record.facts.get("dataset") == job.dataset.name:
            if record.facts.get("digest") != digest:
                raise UsageError(job.store.other_pictures)
            row = parquet.read(job.store.root / layout.dataset_table(job.dataset.name, "datasets")).to_pylist()[0]
            origin = row["source"], row["root"]
        if record.facts.get("model") == job.spec.model.name and record.facts.get("weights") != job.spec.model.digest:
            raise UsageError(
                f"{job.store.root} already holds a model {job.spec.model.name!r} with other weights: "
                "give this one another `name` in [model]"
            )
    return origin


def _refuse_changed(job: Job, record: Record) -> None:
    """Refuse to make a damaged index again from images that have changed."""
    rows = indexing.index_source(job.dataset.source, job.dataset.entries, max(job.runtime.threads, 2))
    if indexing.index_digest(rows) != record.facts.get("digest"):
        raise UsageError(
            f"the index of {job.dataset.name} is damaged and its pictures have changed: put the old pictures back first"
        )


STAGE = Stage("index", "img", _phases, _run, lambda _: Expected(1), before_rerun=_refuse_changed)
