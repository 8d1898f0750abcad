"""Every table of the store, declared once as frozen data. The writer, the views and the docs read it from here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One column. `kind`: name (dictionary string), text, int16/32/64, float32, float64 or bool."""

    name: str
    kind: str
    about: str
    null: bool = False
    ascending: bool = False  # whether values rise within the file, which delta packing makes use of
    added: bool | None = None  # of a column that older stores lack: the value that they are read as having


@dataclass(frozen=True)
class Table:
    name: str
    about: str
    fields: tuple[Field, ...]
    row_group: int = 131_072  # rows per row group; fewer if the rows of one unit, image or class are read alone

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
Y = _f("y", "int32", "row of the first maximum in the layer's map; NULL if the layer is not spatial", null=True)
X = _f("x", "int32", "column of the first maximum; NULL if the layer is not spatial", null=True)

MODELS = Table("models", "one row per model", (
    MODEL,
    _f("source", "text", "torchvision:NAME, timm:NAME or python:MODULE:FACTORY"),
    _f("weights", "text", "where the weights came from"),
    _f("digest", "text", "SHA-256 of the weights"),
    _f("label_space", "name", "the classes that the outputs stand for: imagenet-1k, or the model's name for its own"),
    _f("input_height", "int32", "pixels"),
    _f("input_width", "int32", "pixels"),
    _f("preprocessing", "text", "JSON: resize, crop, interpolation, mean, std"),
))  # fmt: skip
DATASETS = Table("datasets", "one row per dataset", (
    DATASET,
    _f("source", "text", "folder:PATH, webdataset:PATTERN, parquet:PATTERN or package:demo"),
    _f("root", "text", "the folder that image paths are relative to, as the config gave it"),
    _f("images", "int64", "number of files in the index"),
    _f("rejected", "int64", "number of these that could not be read when the index was made"),
    _f("digest", "text", "SHA-256 over the ordered index: paths, contents and classes"),
))  # fmt: skip
CLASSES = Table("classes", "one row per class of a dataset", (
    DATASET,
    _f("class_index", "int32", "the standard 0-999 index for ImageNet synsets; else the number that the dataset gives, "
       "or the rank of the class's name"),
    _f("synset", "text", "WordNet id", null=True),
    _f("label", "text", "English name; two names stand for two ImageNet classes each (crane, maillot)"),
))  # fmt: skip
RUNS = Table("runs", "one row per run: one model over one dataset", (
    _f("run", "name", "MODEL@DATASET"), MODEL, DATASET,
    _f("fingerprint", "text", "SHA-256 over everything that changes results"),
))  # fmt: skip
IMAGES = Table("images", "one row per file of a dataset, including rejected files", (
    DATASET, IMAGE_ID,
    _f("position", "int64", "0-based rank in storage order, which is the order that shards follow"),
    _f("path", "text", "path relative to the dataset's root"),
    _f("label", "text", "name of its class", null=True),
    _f("class_index", "int32", "number of its class", null=True),
    _f("synset", "text", "WordNet id", null=True),
    _f("width", "int32", "pixels, after EXIF rotation", null=True),
    _f("height", "int32", "pixels, after EXIF rotation", null=True),
    _f("sha256", "text", "SHA-256 of the file"),
    _f("status", "name", "accepted or rejected"),
    _f("reason", "text", "why it was rejected", null=True),
    _f("source_file", "text", "the tar or Parquet file that holds it, for these sources", null=True),
    _f("offset", "int64", "byte offset of its data in a tar file, or its row in a Parquet file", null=True),
    _f("length", "int64", "size of the picture's file in bytes"),
), row_group=16_384)  # fmt: skip
REJECTED = Table("rejected_images", "pictures that the index accepted and the scan could not decode", (
    MODEL, DATASET, IMAGE_ID, _f("reason", "text", "why it was rejected"),
))  # fmt: skip
LAYERS = Table("layers", "one row per layer of a run, in order of execution", (
    MODEL, DATASET,
    _f("layer_index", "int32", "0-based order of execution"), LAYER,
    _f("op", "name", "the operation whose output it is"),
    _f("channels", "int32", "number of units"),
    _f("height", "int32", "rows of its map at the model's input size"),
    _f("width", "int32", "columns of its map at the model's input size"),
    Field("spatial", "bool", "whether the positions of its map are places of the picture (from the graph)",
          added=True),
    _f("signed", "bool", "whether values can be negative (from the graph)"),
    _f("upper_bound", "float32", "the value at which the activation is clipped, e.g. 6 for ReLU6", null=True),
    _f("rf_size", "int32", "size of the receptive field in input pixels", null=True),
    _f("rf_stride", "int32", "input pixels between the receptive fields of neighbouring positions", null=True),
    _f("rf_offset", "int32", "first input pixel of the receptive field of position 0; negative if it starts in the "
       "padding", null=True),
    _f("rf_global", "bool", "whether every position sees the whole input"),
    _f("rf_gated", "bool", "whether a squeeze-excite gate before it was ignored in its receptive field"),
))  # fmt: skip
EDGES = Table("edges", "which layer feeds which", (
    MODEL, DATASET, _f("source", "name", "the layer that feeds"), _f("target", "name", "the layer that is fed"),
))  # fmt: skip
PREDICTIONS = Table("predictions", "the network's five likeliest classes for every accepted image", (
    MODEL, DATASET, IMAGE_ID,
    _f("rank", "int16", "rank from 1, the likeliest"),
    _f("class_index", "int32", "index of the network's output"),
    _f("label", "text", "the model's label for this output", null=True),
    _f("probability", "float32", "softmax probability"),
))  # fmt: skip
UNITS = Table("units", "one row per unit", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("mean", "float64", "mean over all positions of accepted images"),
    _f("variance", "float64", "population variance over all positions of accepted images"),
    _f("minimum", "float32", "minimum over all positions of accepted images"),
    _f("maximum", "float32", "maximum over all positions of accepted images"),
    _f("fraction_active", "float64", "share of positions above zero"),
    _f("max_mean", "float64", "mean of the per-image maxima"),
    _f("max_sd", "float64", "population standard deviation of the per-image maxima"),
    _f("q50", "float32", "quantile of the per-image maxima: the smallest value that 50 % of images do not exceed"),
    _f("q90", "float32", "the same for 90 %"),
    _f("q99", "float32", "the same for 99 %"),
    _f("q999", "float32", "the same for 99.9 %"),
    _f("q9999", "float32", "the same for 99.99 %"),
    _f("saturated", "float64", "share of images whose maximum reaches the layer's upper_bound", null=True),
    _f("selectivity", "float64", "(best class mean - mean of the others) / their sum, on per-image maxima (Morcos "
       "et al. 2018); only classes of 10 images or more", null=True),
    _f("top_class", "int32", "the class with the highest mean maximum, among classes of 10 images or more", null=True),
    _f("dead", "bool", "whether it is never above zero on any image; in signed layers, whether it is constant"),
))  # fmt: skip
TOP_EXAMPLES = Table("top_examples", "the exact strongest images of every unit, and the weakest of signed layers", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("direction", "name", "highest or lowest"),
    _f("rank", "int16", "rank from 1, sorted by (max desc, mean desc, image_id) or (min asc, image_id)"),
    _f("image_id", "int64", "the image"),
    _f("value", "float32", "the unit's maximum on it, or its minimum if direction is lowest"),
    _f("mean", "float32", "the unit's mean over positions"), Y, X,
    _f("box_y0", "int32", "the receptive field of (y, x) in pixels of the network's input, clipped: first row; NULL if "
       "the layer is not spatial", null=True),
    _f("box_x0", "int32", "first column of the receptive field", null=True),
    _f("box_y1", "int32", "one past the last row of the receptive field", null=True),
    _f("box_x1", "int32", "one past the last column of the receptive field", null=True),
), row_group=16_384)  # fmt: skip
TAIL = Table("tail", "exact values where a unit fires unusually high: tail_p <= 0.01, or among its first 20 images", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("image_id", "int64", "the image"),
    _f("value", "float32", "the unit's maximum on it"),
    _f("tail_p", "float64", "share of accepted images with at least this value"), Y, X,
), row_group=16_384)  # fmt: skip
CLASS_STATS = Table("class_stats", "one row per unit and class", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("class_index", "int32", "the class"),
    _f("mean_max", "float32", "mean of the per-image maxima in the class"),
    _f("auc", "float32", "area under the ROC curve of this class against all others, ties count half; NULL if the "
       "class has fewer than 10 images", null=True),
), row_group=16_384)  # fmt: skip
NEIGHBORS = Table("neighbors", "for each unit, the units of its layer whose per-image maxima correlate most", (
    MODEL, DATASET, LAYER, CHANNEL,
    _f("rank", "int16", "rank from 1, the most similar"),
    _f("other_layer", "name", "layer of the other unit"),
    _f("other_channel", "int32", "channel of the other unit"),
    _f("correlation", "float32", "Pearson correlation over per-image maxima; dead units have no rows"),
), row_group=16_384)  # fmt: skip
VISUALIZATIONS = Table("visualizations", "one row per feature visualization", (
    MODEL, DATASET, LAYER,
    _f("channel", "int32", "the unit's channel in its layer, from 0; -1 if the picture is of the whole layer"),
    _f("kind", "name", "channel, neuron (one position, the centre), diversity (several that differ) or deepdream"),
    _f("direction", "name", "positive or negative"),
    _f("repeat", "int16", "0, 1, ... for several pictures of one unit"),
    _f("objective", "text", "the objective in Lucid's notation"),
    _f("size", "int32", "side of the canvas in pixels"),
    _f("steps", "int32", "number of optimisation steps"),
    _f("input", "name", "what the network saw: canvas (the canvas at its own size) or model (the canvas resized to the "
       "model's input size)"),
    _f("value", "float32", "the objective on the final picture, at the model's input size, without transforms"),
    _f("value_transformed", "float32", "mean of the objective over eight fresh draws of the transforms, at the model's "
       "input size"),
    _f("value_vs_best_example", "float32", "value divided by that of the best natural example (both before a clip); "
       "NULL for whole layers, and if the example's value is 0 or its sign differs from the direction", null=True),
    _f("rank_in_layer", "int32", "the unit's rank in its layer on its own picture, by how strong each response is for "
       "its unit (1: no other unit responds more strongly); NULL for negative pictures and whole layers", null=True),
    _f("beats_median", "bool", "whether the picture fires the unit more than its median image does; for a whole layer, "
       "more than the median of 32 images"),
    _f("h5_file", "text", "path of the picture's HDF5 file, relative to the store"),
    _f("h5_dataset", "text", "name of its dataset in that file: uint8 [n, size, size, 3]"),
    _f("h5_index", "int32", "its row in that dataset"),
))  # fmt: skip
CONNECTIONS = Table("connections", "for each unit, the units that feed it most strongly by the weights between them", (
    MODEL, DATASET,
    _f("layer", "name", "layer of the unit that is fed"),
    _f("channel", "int32", "channel of the unit that is fed"),
    _f("rank", "int16", "rank from 1, the strongest by size"),
    _f("source_layer", "name", "layer of the unit that feeds it"),
    _f("source_channel", "int32", "channel of the unit that feeds it"),
    _f("strength", "float32", "length of the weights that lead from it to the middle of the fed unit's map, times the "
       "standard deviation of its values over positions; negative if the weights' sum is"),
    _f("weight", "float32", "sum of these weights"),
    _f("path", "name", "what the weights lead through"),
), row_group=16_384)  # fmt: skip
GROUPS = Table("groups", "neuron groups; empty, because no stage fills them yet", (
    MODEL, DATASET, LAYER,
    _f("group_index", "int32", "the group"), CHANNEL,
    _f("loading", "float32", "the channel's weight in the group"),
))  # fmt: skip

DATASET_TABLES = (DATASETS, IMAGES, CLASSES)  # files datasets/<dataset>/<table>.parquet
RUN_TABLES = (
    MODELS, RUNS, LAYERS, EDGES, REJECTED, PREDICTIONS, UNITS, TOP_EXAMPLES, CLASS_STATS, NEIGHBORS, VISUALIZATIONS,
    CONNECTIONS, GROUPS,
)  # fmt: skip
TABLES = (*DATASET_TABLES, *RUN_TABLES, TAIL)
