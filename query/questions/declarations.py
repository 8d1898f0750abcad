"""Every question, declared once.

The macros of SQL, `unitscope ask`, the commands top-units and top-images, and the table of macros in docs/sql.md are
made from these. Imports nothing heavy, for `--help`.
"""

from __future__ import annotations

from typing import Final

from query.questions.question import Macro, Parameter, Question

_IMAGE = Parameter(
    "image",
    "image",
    help="An image_id (all digits), a path in the dataset, or a picture file on disk, on which the model then runs.",
)
_UNIT_HELP = "LAYER:CHANNEL, or MODEL/LAYER:CHANNEL where a store holds several models."
_UNIT = Parameter("unit", "unit", help=_UNIT_HELP)
_CLASS = Parameter("label", "class", help="The index, the synset or the label of a class.", metavar="CLASS")
_LAYERS = Parameter("layer", "layers", None, "Only units of matching layers; may be repeated.")
MODEL = Parameter("model", "model", None, "Which model, where the store holds several.")
DATASET = Parameter("dataset", "dataset", None, "Which dataset, where the store holds several.")
_RUN = (MODEL, DATASET)
_K_OR_ALL = Parameter("k", "count", None, "How many. Default: all.")


def _k(default: int) -> Parameter:
    return Parameter("k", "count", default, "How many.")


_N: Final = {"n": "BIGINT"}
_RANK: Final = {"rank": "BIGINT"}
_UNIT_COLUMNS: Final = {"model": "VARCHAR", "layer": "VARCHAR", "channel": "INTEGER"}
_IMAGE_COLUMNS: Final = {"image_id": "BIGINT", "path": "VARCHAR", "label": "VARCHAR", "class_index": "INTEGER"}
_VALUE: Final = {"value": "FLOAT", "mean": "FLOAT", "tail_p": "DOUBLE"}
_CONNECTION: Final = {"strength": "FLOAT", "weight": "FLOAT", "path": "VARCHAR"}
_POSITION: Final = {"y": "INTEGER", "x": "INTEGER"}

_SQL_K: Final = {"k": ("BIGINT", "k")}
_SQL_UNIT: Final = {"unit": ("VARCHAR", "unit")}
_SQL_IMAGE: Final = {"image_id": ("BIGINT", "image")}
_SQL_CLASS: Final = {"class": ("VARCHAR", "label")}
_SQL_DATASET: Final = {"dataset": ("VARCHAR", "dataset")}
_SQL_RUN: Final = {"model": ("VARCHAR", "model")} | _SQL_DATASET
_OPTIONAL = tuple(_SQL_RUN)

QUESTIONS: tuple[Question, ...] = (
    Question(
        name="top_units",
        parameters=(
            _IMAGE,
            _k(20),
            _LAYERS,
            Parameter(
                "by",
                "choice",
                "tail",
                "tail: rarest for the unit first; max, mean: most deviations above the unit's average first.",
                choices=("tail", "max", "mean"),
            ),
            *_RUN,
        ),
        columns=_UNIT_COLUMNS | _VALUE | {"z": "DOUBLE"} | _RANK | _POSITION | _N,
        about="Which units fire most on this image?",
        detail="tail_p is the share of the n images that reach the value. y and x are the position of the maximum in "
        "the layer's map, empty where the store does not keep it.",
        examples=(
            "unitscope top-units stores/demo 12 -k 5",
            "unitscope top-units stores/demo holiday/beach.jpg --layer 'blocks.5.*'",
        ),
        macros=(Macro("top_units", _SQL_IMAGE | _SQL_K | _SQL_RUN, optional=_OPTIONAL),),
        command="top-units",
    ),
    Question(
        name="top_images",
        parameters=(
            _UNIT,
            _k(20),
            Parameter("label", "class", None, "Only images of this class.", metavar="INDEX|SYNSET|LABEL"),
            Parameter(
                "by",
                "choice",
                "max",
                "max: by the strongest position of the map; mean: by the average over the map.",
                choices=("max", "mean"),
            ),
            Parameter("lowest", "flag", False, "The lowest images instead, for layers that can be negative."),
            *_RUN,
        ),
        columns=_RANK | _IMAGE_COLUMNS | _VALUE | _POSITION | _N,
        about="Which images fire this unit most?",
        detail="tail_p is the share of the n images that reach the value. y and x are the position of the maximum in "
        "the layer's map, empty where the store does not keep it.",
        examples=(
            "unitscope top-images stores/demo blocks.3.1.bn1:17",
            "unitscope top-images stores/demo blocks.3.1.bn1:17 --class lighthouse -k 5 --format json",
        ),
        macros=(
            Macro("top_images", _SQL_UNIT | _SQL_K | _SQL_RUN, optional=_OPTIONAL),
            Macro("top_images_of_class", _SQL_UNIT | _SQL_CLASS | _SQL_K | _SQL_RUN, optional=_OPTIONAL),
            Macro("lowest_images", _SQL_UNIT | _SQL_K | _SQL_RUN, fixed={"lowest": True}, optional=_OPTIONAL),
        ),
        command="top-images",
    ),
    Question(
        name="activations",
        parameters=(_UNIT, *_RUN),
        columns=_IMAGE_COLUMNS | _VALUE | {"exact": "BOOLEAN"} | _POSITION | _N,
        about="The activations of one unit on all images, or of one image on all units.",
        detail="Of a unit: `exact` says whether the value is what was measured; if not, it is decoded from its code. "
        "Of an image: the same answer as activations-of.",
        examples=(
            "unitscope ask stores/demo activations blocks.5.2.bn1:3 --format csv",
            "unitscope ask stores/demo activations 12 --format csv",
        ),
        macros=(Macro("unit_row", _SQL_UNIT | _SQL_RUN, optional=_OPTIONAL),),
        rows="images",
    ),
    Question(
        name="distribution",
        parameters=(_UNIT, *_RUN),
        columns={"bin": "BIGINT", "low": "DOUBLE", "high": "DOUBLE", "images": "BIGINT"} | _N,
        about="How the values of a unit are distributed over the images: a histogram.",
        detail="Equal bins from the lowest to the highest maximum on an image. Images are counted by their codes.",
        examples=("unitscope ask stores/demo distribution blocks.5.2.bn1:3",),
        macros=(Macro("distribution", _SQL_UNIT | _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="images_between",
        parameters=(
            _UNIT,
            Parameter("low", "number", help="The least value."),
            Parameter("high", "number", help="The greatest value."),
            _k(20),
            *_RUN,
        ),
        columns=_RANK | _IMAGE_COLUMNS | _VALUE | _POSITION | _N,
        about="Images on which a unit's value lies from LOW to HIGH, the highest first.",
        detail="Values that are not kept exactly are those of their codes.",
        examples=("unitscope ask stores/demo images-between blocks.5.2.bn1:3 1.5 2.5 -k 5",),
        macros=(
            Macro(
                "images_between",
                _SQL_UNIT | {"low": ("DOUBLE", "low"), "high": ("DOUBLE", "high")} | _SQL_K | _SQL_RUN,
                optional=_OPTIONAL,
            ),
        ),
    ),
    Question(
        name="quantile_images",
        parameters=(_UNIT, _k(8), *_RUN),
        columns={"quantile": "DOUBLE"} | _RANK | _IMAGE_COLUMNS | _VALUE | _POSITION | _N,
        about="Images at quantiles of a unit's values, from almost the highest to the low ones.",
        detail="k images each around the 99, 90, 50 and 10 % quantile (or those of `[examples] quantiles` in the run's "
        "config), because a unit is more than its extremes.",
        examples=("unitscope ask stores/demo quantile-images blocks.5.2.bn1:3 -k 4",),
        macros=(Macro("quantile_images", _SQL_UNIT | _SQL_K | _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="activations_of",
        parameters=(_IMAGE, _LAYERS, *_RUN),
        columns=_UNIT_COLUMNS | _VALUE | {"z": "DOUBLE"} | _POSITION | _N,
        about="The activations of one image on all units.",
        detail="z is the value's distance from the unit's average, in standard deviations.",
        examples=("unitscope ask stores/demo activations-of 12 --layer 'blocks.5.*' --format csv",),
        macros=(Macro("image_row", _SQL_IMAGE | _SQL_RUN, optional=_OPTIONAL),),
        rows="units",
    ),
    Question(
        name="similar_units",
        parameters=(
            _UNIT,
            _k(10),
            Parameter("layer", "layers", None, "Search the layers that match, not the unit's own."),
            *_RUN,
        ),
        columns=_UNIT_COLUMNS | _RANK | {"correlation": "DOUBLE"} | _N,
        about="Which units fire on the same images as this unit?",
        detail="By the correlation of their maxima over images.",
        examples=("unitscope similar stores/demo blocks.3.1.bn1:17",),
        macros=(
            Macro(
                "similar_units",
                _SQL_UNIT | _SQL_K | {"layers": ("VARCHAR", "layer")} | _SQL_RUN,
                optional=("layers", *_OPTIONAL),
            ),
        ),
        command="similar",
    ),
    Question(
        name="inputs",
        parameters=(_UNIT, _k(20), *_RUN),
        columns=_UNIT_COLUMNS | _RANK | _CONNECTION | _N,
        about="Which units feed this unit most strongly?",
        detail="By the weights that lead from the layers before it, times how much the other unit varies. Negative: it "
        "holds this unit down. `path` says what lies between.",
        examples=("unitscope ask stores/demo inputs blocks.5.2.bn1:3 -k 5",),
        macros=(Macro("inputs", _SQL_UNIT | _SQL_K | _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="outputs",
        parameters=(_UNIT, _k(20), *_RUN),
        columns=_UNIT_COLUMNS | _RANK | _CONNECTION | _N,
        about="Which units does this unit feed most strongly?",
        detail="Those that have this unit among their strongest inputs; see inputs.",
        examples=("unitscope ask stores/demo outputs blocks.5.2.bn1:3 -k 5",),
        macros=(Macro("outputs", _SQL_UNIT | _SQL_K | _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="similar_images",
        parameters=(_IMAGE, Parameter("layer", "layer", help="The layer to compare in."), _k(10), *_RUN),
        columns=_RANK | _IMAGE_COLUMNS | {"similarity": "DOUBLE"} | _N,
        about="Which images look alike to a layer?",
        detail="By the cosine of their z over the layer's units.",
        examples=("unitscope similar stores/demo 12 --layer blocks.5.2.bn1",),
        macros=(
            Macro(
                "similar_images",
                _SQL_IMAGE | {"layer": ("VARCHAR", "layer")} | _SQL_K | _SQL_RUN,
                optional=_OPTIONAL,
            ),
        ),
        command="similar",
    ),
    Question(
        name="both",
        parameters=(
            Parameter("a", "unit", help=_UNIT_HELP),
            Parameter("b", "unit", help=_UNIT_HELP),
            Parameter("without", "flag", False, "A high and B not: zero, or below its median image."),
            _k(20),
            *_RUN,
        ),
        columns=_RANK
        | _IMAGE_COLUMNS
        | {"value_a": "FLOAT", "tail_p_a": "DOUBLE", "value_b": "FLOAT", "tail_p_b": "DOUBLE"}
        | _N,
        about="Images on which units A and B are both high, or A without B.",
        detail="By the larger of the two tail_p, then by their sum; without B, by the tail_p of A.",
        examples=("unitscope ask stores/demo both blocks.5.2.bn1:3 blocks.5.2.bn1:7 --without -k 5",),
        macros=tuple(
            Macro(
                name,
                {"a": ("VARCHAR", "a"), "b": ("VARCHAR", "b")} | _SQL_K | _SQL_RUN,
                fixed={"without": without},
                optional=_OPTIONAL,
            )
            for name, without in (("both_high", False), ("high_without", True))
        ),
    ),
    Question(
        name="units_for_class",
        parameters=(_CLASS, _k(20), _LAYERS, *_RUN),
        columns=_UNIT_COLUMNS
        | _RANK
        | {"auc": "FLOAT", "mean_max": "FLOAT", "z": "DOUBLE", "selectivity": "DOUBLE", "top_class": "INTEGER"}
        | {"class_index": "INTEGER", "label": "VARCHAR"}
        | _N,
        about="Units that tell a class from all other images.",
        detail="By the area under the ROC curve (auc), then by z, the class mean's distance from the unit's average in "
        "standard deviations. auc is empty for a class of fewer than 10 images.",
        examples=("unitscope ask stores/demo units-for-class dalmatian -k 5",),
        macros=(Macro("units_for_class", _SQL_CLASS | _SQL_K | _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="class_selectivity",
        parameters=(_K_OR_ALL, _LAYERS, *_RUN),
        columns=_UNIT_COLUMNS | _RANK | {"selectivity": "DOUBLE", "top_class": "INTEGER", "label": "VARCHAR"} | _N,
        about="How selective every unit is for its best class, the most selective first.",
        detail="selectivity = (best class mean - mean of the others) / their sum, on per-image maxima. Units without "
        "one, as those of layers that can be negative, are left out.",
        examples=("unitscope ask stores/demo class-selectivity -k 10 --layer 'blocks.5.*'",),
        macros=(Macro("class_selectivity", _SQL_K | _SQL_RUN, optional=(*_SQL_K, *_OPTIONAL)),),
    ),
    Question(
        name="separating_units",
        parameters=(
            Parameter(
                "images_a",
                "images",
                help="A class, or a set of images: image_ids or paths with commas between them.",
                metavar="A",
            ),
            Parameter("images_b", "images", help="The class or the set to tell it from.", metavar="B"),
            _k(20),
            _LAYERS,
            *_RUN,
        ),
        columns=_UNIT_COLUMNS
        | _RANK
        | {"auc": "DOUBLE", "mean_a": "DOUBLE", "mean_b": "DOUBLE", "z": "DOUBLE", "n_a": "BIGINT", "n_b": "BIGINT"}
        | _N,
        about="Units that best tell two classes, or two sets of images, A and B apart.",
        detail="auc near 1: high on A; near 0: high on B.",
        examples=(
            "unitscope ask stores/demo separating-units dalmatian lighthouse",
            "unitscope ask stores/demo separating-units 3,7,11 0,1,2",
        ),
        macros=(
            Macro(
                "separating_units",
                {"class_a": ("VARCHAR", "images_a"), "class_b": ("VARCHAR", "images_b")} | _SQL_K | _SQL_RUN,
                optional=_OPTIONAL,
            ),
        ),
    ),
    Question(
        name="compare",
        parameters=(
            Parameter("model_a", "model", help="A model of the store."),
            Parameter("model_b", "model", help="The model, or the other checkpoint, to compare it with."),
            _k(20),
            _LAYERS,
            DATASET,
        ),
        columns=_UNIT_COLUMNS
        | {"other_model": "VARCHAR", "other_layer": "VARCHAR", "other_channel": "INTEGER"}
        | _RANK
        | {"change": "DOUBLE", "correlation": "DOUBLE"}
        | _N,
        about="Which units differ between two models, or two checkpoints, on the same images; the most changed first.",
        detail="With the same layers each unit is compared with itself, otherwise with the unit of MODEL_B that "
        "correlates with it best. change = 1 - correlation.",
        examples=("unitscope ask stores/demo compare before after --layer 'layer4.*'",),
        macros=(
            Macro(
                "compare_models",
                {"model_a": ("VARCHAR", "model_a"), "model_b": ("VARCHAR", "model_b")} | _SQL_K | _SQL_DATASET,
                optional=tuple(_SQL_DATASET),
            ),
        ),
    ),
    Question(
        name="polysemantic_units",
        parameters=(_k(20), _LAYERS, *_RUN),
        columns=_UNIT_COLUMNS
        | _RANK
        | {"spread": "DOUBLE", "share": "DOUBLE", "classes": "BIGINT", "labels": "VARCHAR"}
        | _N,
        about="Units whose strongest images are of several classes that are unlike each other.",
        detail="share is the part of a unit's stored highest images whose classes it fires for. spread is share times "
        "the mean distance of two of these classes. The answer is empty if no unit fires for any class.",
        examples=("unitscope ask stores/demo polysemantic-units -k 10",),
        macros=(Macro("polysemantic_units", _SQL_K | _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="unit_states",
        parameters=(_LAYERS, *_RUN),
        columns=_UNIT_COLUMNS
        | {"state": "VARCHAR", "fraction_active": "DOUBLE", "saturated": "DOUBLE", "maximum": "DOUBLE"}
        | _N,
        about="Units that are dead, always on, or clipped on most images.",
        detail="dead: never above zero, or constant in a layer that can be negative. always on: above zero at 99 % of "
        "all positions or more. clipped: the maximum is at the clip on half of the images or more.",
        examples=("unitscope ask stores/demo unit-states --format csv",),
        macros=(Macro("unit_states", _SQL_RUN, optional=_OPTIONAL),),
    ),
    Question(
        name="image_summary",
        parameters=(_IMAGE, *_RUN),
        columns={"model": "VARCHAR", "layer": "VARCHAR", "units": "BIGINT", "active": "BIGINT", "rare": "BIGINT"}
        | {"expected": "DOUBLE", "channel": "INTEGER", "value": "FLOAT", "tail_p": "DOUBLE", "z": "DOUBLE"}
        | _POSITION
        | _N,
        about="An image layer by layer: how many units are active, how many unusually so, and the first of each layer.",
        detail="rare counts units whose value at most 1 % of the images reach; expected is how many of a layer's units "
        "usually are.",
        examples=(
            "unitscope ask stores/demo image-summary 12",
            "unitscope ask stores/demo image-summary holiday/beach.jpg",
        ),
        macros=(Macro("image_summary", _SQL_IMAGE | _SQL_RUN, optional=_OPTIONAL),),
    ),
)

BY_NAME: dict[str, Question] = {question.name: question for question in QUESTIONS}
