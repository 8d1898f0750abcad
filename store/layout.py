"""The paths of everything in a store. Each is relative to the store's root and uses forward slashes."""

from __future__ import annotations

FORMAT_VERSION = 1
BLOCK = 65_536  # images in one file of the image-major dense record

MANIFEST = "manifest.json"
EXPLORED = "explore.toml"  # the config that `unitscope explore` made
COMMITS = "commits"
LOGS = "logs"
PARTIALS = "partials"


def image_chunk(units: int) -> tuple[int, int]:
    """Return the chunk shape (images, units) of the image-major dense record.

    A chunk holds as many whole rows as fit in 16 KiB, at least one: a row is one image's codes, one byte per unit.
    """
    return max(1, (16 << 10) // units), units


def run_name(model: str, dataset: str) -> str:
    return f"{model}@{dataset}"


def record(run: str, stage: str, shard: str) -> str:
    return f"{COMMITS}/{run}/{stage}/{shard}.json"


def dataset_table(dataset: str, table: str) -> str:
    return f"datasets/{dataset}/{table}.parquet"


def config(run: str) -> str:
    return f"runs/{run}/config.toml"


def table(run: str, name: str) -> str:
    return f"runs/{run}/tables/{name}.parquet"


def class_stats_by_class(run: str) -> str:
    return f"runs/{run}/tables/class_stats_by_class.parquet"


def tail_by_unit(run: str, layer: str) -> str:
    return f"runs/{run}/tables/tail_by_unit/{layer}.parquet"


def tail_by_image(run: str, block: int) -> str:
    return f"runs/{run}/tables/tail_by_image/{block:05d}.parquet"


def array(run: str, name: str) -> str:
    return f"runs/{run}/arrays/{name}.h5"


def codes_by_image(run: str, block: int) -> str:
    return f"runs/{run}/arrays/codes_by_image/{block:05d}.h5"


def coordinates(run: str, block: int) -> str:
    return f"runs/{run}/arrays/coordinates/{block:05d}.h5"


def codes_by_unit(run: str, layer: str) -> str:
    return f"runs/{run}/arrays/codes_by_unit/{layer}.h5"


def visualizations(run: str, layer: str) -> str:
    return f"runs/{run}/arrays/visualizations/{layer}.h5"


def example_images(run: str) -> str:
    return f"runs/{run}/arrays/examples/images.h5"


def partial(run: str, stage: str, name: str) -> str:
    return f"runs/{run}/{PARTIALS}/{stage}/{name}"


def is_partial(path: str) -> bool:
    """Return whether a recorded file is a partial, which is removed once the shard that consumes it is committed."""
    parts = path.split("/")
    return len(parts) > 3 and parts[0] == "runs" and parts[2] == PARTIALS
