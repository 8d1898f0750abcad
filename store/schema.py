"""Every table of the store as frozen data: the writer, the views, `verify` and the docs all read it from here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One column. `kind`: name (dictionary string), text, int16/32/64, float32, float64 or bool."""

    name: str
    kind: str
    about: str
    null: bool = False
    ascending: bool = False  # ids that rise within the file: delta-packed


@dataclass(frozen=True)
class Table:
    name: str
    about: str
    fields: tuple[Field, ...]
    row_group: int = 131_072  # rows; few where one unit's, image's or class's rows are read alone

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.fields)


def _f(name: str, kind: str, about: str, null: bool = False, ascending: bool = False) -> Field:
    return Field(name, kind, about, null, ascending)


MODEL = _f("model", "name", "the model's name")
DATASET = _f("dataset", "name", "the dataset's name")
LAYER = _f("layer", "name", "the layer: a node of the traced graph")
CHANNEL = _f("channel", "int32", "the unit's channel in its layer, from 0")
IMAGE_ID = _f("image_id", "int64", "0-based row of the dataset's ordered index", ascending=True)
Y = _f("y", "int32", "row of the first maximum in the layer's map")
X = _f("x", "int32", "column of the first maximum in the layer's map")

MODELS = Table("models", "one row a model", (
    MODEL,
    _f("source", "text", "torchvision:NAME, timm:NAME or python:MODULE:FACTORY"),
    _f("weights", "text", "where the weights came from"),
    _f("digest", "text", "SHA-256 of the weights"),
    _f("label_space", "name", "which classes the outputs are: imagenet-1k or the model's own"),
    _f("input_height", "int32", "pixels"),
    _f("input_width", "int32", "pixels"),
    _f("preprocessing", "text", "JSON: resize, crop, interpolation, mean, std"),
))  # fmt: skip
DATASETS = Table("datasets", "one row a dataset", (
    DATASET,
    _f("source", "text", "folder:PATH, webdataset:PATTERN, parquet:PATTERN or package:demo"),
    _f("root", "text", "what image paths are relative to, as the config gave it"),
    _f("images", "int64", "rows of the index"),
    _f("rejected", "int64", "of these, how many the index could not read"),
    _f("digest", "text", "SHA-256 over the ordered index: paths, contents and classes"),
))  # fmt: skip
CLASSES = Table("classes", "one row a class of a dataset", (
    DATASET,
    _f("class_index", "int32", "the standard 0-999 index for ImageNet synsets, else the folder's rank"),
    _f("synset", "text", "WordNet id", null=True),
    _f("label", "text", "English name; two ImageNet classes share one (crane, maillot)"),
))  # fmt: skip
RUNS = Table("runs", "one row a run: one model over one dataset", (
    _f("run", "name", "MODEL@DATASET"), MODEL, DATASET,
    _f("fingerprint", "text", "SHA-256 over everything that changes results"),
))  # fmt: skip
IMAGES = Table("images", "one row a file of a dataset, rejected ones too", (
    DATASET, IMAGE_ID,
    _f("position", "int64", "place in storage order: what shards run over"),
    _f("path", "text", "relative to the dataset's root"),
    _f("label", "text", "class label", null=True),
    _f("class_index", "int32", "class", null=True),
    _f("synset", "text", "WordNet id", null=True),
    _f("width", "int32", "pixels, after EXIF rotation", null=True),
    _f("height", "int32", "pixels, after EXIF rotation", null=True),
    _f("sha256", "text", "SHA-256 of the file"),
    _f("status", "name", "accepted or rejected"),
    _f("reason", "text", "why it was rejected", null=True),
    _f("source_file", "text", "the shard that holds it, for tar and Parquet sources", null=True),
    _f("offset", "int64", "where its bytes begin in a tar; its row in a Parquet file", null=True),
    _f("length", "int64", "bytes"),
), row_group=16_384)  # fmt: skip
REJECTED = Table("rejected_images", "pictures the index passed and the scan could not decode", (
    MODEL, DATASET, IMAGE_ID, _f("reason", "text", "why"),
))  # fmt: skip
LAYERS = Table("layers", "one row a layer of a run, in order of execution", (
    MODEL, DATASET,
    _f("layer_index", "int32", "0-based order of execution"), LAYER,
    _f("op", "name", "the operation whose output it is"),
    _f("channels", "int32", "units"),
    _f("height", "int32", "rows of the map at the model's input size"),
    _f("width", "int32", "columns of the map"),
    _f("signed", "bool", "whether values can be negative (from the graph)"),
    _f("upper_bound", "float32", "the clip, 6 for ReLU6", null=True),
    _f("rf_size", "int32", "receptive field in input pixels", null=True),
    _f("rf_stride", "int32", "input pixels between neighbouring positions", null=True),
    _f("rf_offset", "int32", "first input pixel of position 0's field; negative in the padding", null=True),
    _f("rf_global", "bool", "every position sees the whole input"),
    _f("rf_gated", "bool", "a squeeze-excite gate before it was ignored"),
))  # fmt: skip
EDGES = Table("edges", "which layer feeds which", (
    MODEL, DATASET, _f("source", "name", "layer"), _f("target", "name", "layer"),
))  # fmt: skip
PREDICTIONS = Table("predictions", "the network's own top 5 for every accepted image", (
    MODEL, DATASET, IMAGE_ID,
    _f("rank", "int16", "1 is the likeliest"),
    _f("class_index", "int32", "output"),
    _f("label", "text", "the model's label for it", null=True),
    _f("probability", "float32", "softmax"),
))  # fmt: skip
UNITS = Table("units", "one row a unit", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("mean", "float64", "over all positions of accepted images"),
    _f("variance", "float64", "over all positions of accepted images (population)"),
    _f("minimum", "float32", "over all positions"),
    _f("maximum", "float32", "over all positions"),
    _f("fraction_active", "float64", "share of positions above zero"),
    _f("max_mean", "float64", "mean of the per-image maxima"),
    _f("max_sd", "float64", "standard deviation of the per-image maxima (population)"),
    _f("q50", "float32", "per-image maxima: smallest value that 50 % of images do not exceed"),
    _f("q90", "float32", "the same for 90 %"),
    _f("q99", "float32", "the same for 99 %"),
    _f("q999", "float32", "the same for 99.9 %"),
    _f("q9999", "float32", "the same for 99.99 %"),
    _f("saturated", "float64", "share of images whose maximum sits at the clip", null=True),
    _f("selectivity", "float64", "(best class mean - mean of the others) / their sum, on per-image maxima (Morcos "
       "et al. 2018); classes of 10 images or more", null=True),
    _f("top_class", "int32", "the class of the highest mean maximum, of classes of 10 images or more", null=True),
    _f("dead", "bool", "never above zero on any image; for signed layers, constant"),
))  # fmt: skip
TOP_EXAMPLES = Table("top_examples", "the exact strongest images of every unit, and the weakest of signed layers", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("direction", "name", "highest or lowest"),
    _f("rank", "int16", "from 1: (max desc, mean desc, image_id) or (min asc, image_id)"),
    _f("image_id", "int64", "the image"),
    _f("value", "float32", "its maximum, or minimum"),
    _f("mean", "float32", "its mean over positions"), Y, X,
    _f("box_y0", "int32", "the receptive field of (y, x) in pixels of the network's input, clipped: first row"),
    _f("box_x0", "int32", "first column"),
    _f("box_y1", "int32", "one past the last row"),
    _f("box_x1", "int32", "one past the last column"),
), row_group=16_384)  # fmt: skip
TAIL = Table("tail", "exact values where a unit fires unusually high: tail_p <= 0.01, or among its first 20 images", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("image_id", "int64", "the image"),
    _f("value", "float32", "its maximum"),
    _f("tail_p", "float64", "share of accepted images with at least this value"), Y, X,
), row_group=16_384)  # fmt: skip
CLASS_STATS = Table("class_stats", "one row a unit and class", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("class_index", "int32", "class"),
    _f("mean_max", "float32", "mean of the per-image maxima in the class"),
    _f("auc", "float32", "area under ROC, this class against the rest, ties half; NULL under 10 images", null=True),
), row_group=16_384)  # fmt: skip
NEIGHBORS = Table("neighbors", "units whose per-image maxima go together, within a layer", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("rank", "int16", "1 is the most similar"),
    _f("other_layer", "name", "layer of the other unit"),
    _f("other_channel", "int32", "channel of the other unit"),
    _f("correlation", "float32", "Pearson over per-image maxima; dead units have no rows"),
), row_group=16_384)  # fmt: skip
VISUALIZATIONS = Table("visualizations", "one row a feature visualization", (
    MODEL, DATASET, LAYER,
    _f("channel", "int32", "the unit's channel in its layer, from 0; -1 where the picture is of the whole layer"),
    _f("kind", "name", "channel, neuron (one position, the centre), diversity (several that differ) or deepdream"),
    _f("direction", "name", "positive or negative"),
    _f("repeat", "int16", "0, 1, ... for several pictures of one unit"),
    _f("objective", "text", "the objective in Lucid's notation"),
    _f("size", "int32", "pixels of the canvas"),
    _f("steps", "int32", "optimisation steps"),
    _f("input", "name", "what the network saw: the canvas at its own size, or resized to the model's input"),
    _f("value", "float32", "the objective on the final picture, at the model's input size, without transforms"),
    _f("value_transformed", "float32", "its mean over eight fresh draws of the transforms, at that size too"),
    _f("value_vs_best_example", "float32", "value over the best natural example's (before a clip); NULL where that is "
       "<= 0", null=True),
    _f("rank_in_layer", "int32", "the unit's place among its layer's units on its own picture (1 is specific); NULL "
       "for negative pictures and whole layers", null=True),
    _f("beats_median", "bool", "whether the picture fires the unit more than its median image does; a layer, than the "
       "median of 32 images"),
    _f("h5_file", "text", "relative to the store"),
    _f("h5_dataset", "text", "uint8 [n, size, size, 3]"),
    _f("h5_index", "int32", "row in the dataset"),
))  # fmt: skip
GROUPS = Table("groups", "neuron groups (a later stage fills them)", (
    MODEL, DATASET, LAYER,
    _f("group_index", "int32", "the group"), CHANNEL,
    _f("loading", "float32", "the channel's weight in the group"),
))  # fmt: skip

DATASET_TABLES = (DATASETS, IMAGES, CLASSES)  # files datasets/<dataset>/<table>.parquet
RUN_TABLES = (
    MODELS, RUNS, LAYERS, EDGES, REJECTED, PREDICTIONS, UNITS, TOP_EXAMPLES, CLASS_STATS, NEIGHBORS, VISUALIZATIONS,
    GROUPS,
)  # fmt: skip
TABLES = (*DATASET_TABLES, *RUN_TABLES, TAIL)
