"""Does any network open, with true layers? Every classifier of torchvision, and one of each family that timm has.

Each is opened with random weights, traced, and held against the untouched network call by call, as `layers`, `plan`,
`run` and `render` do. The table names what is refused, with its line, and the submodules that are single nodes, with
the share of the parameters that they hold.
"""

from __future__ import annotations

import gc
import re
import time
import warnings

import click
from bench import Bar, Report, options

TIMM = (
    "vit_xsmall_patch16_clip_224", "mobileone_s0", "beit_base_patch16_224", "halonet26t", "caformer_s18",
    "cait_xxs24_224", "coat_tiny", "maxvit_pico_rw_256", "convit_tiny", "convmixer_768_32", "convnext_pico",
    "cpubone_nano", "crossvit_tiny_240", "darknet17", "csatv2", "cspnext_tiny", "davit_tiny", "deepseek_vit_412m",
    "deit_tiny_patch16_224", "densenet264d", "dla34", "nf_resnet26", "dpn68", "vovnet39a", "resnet18",
    "edgenext_xx_small", "efficientformer_l1", "efficientformerv2_s0", "mobilenet_edgetpu_v2_xs", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_t8",
    "mobilenetv3_small_050", "focalnet_tiny_lrf", "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050", "gmlp_b16_224",
    "hardcorenas_b", "hgnet_tiny", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small", "iformer_h",
    "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2_small",
    "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_b0", "mambaout_femto", "mobilenetv5_base",
    "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_gap", "nasnetalarge", "nest_tiny", "nextvit_small",
    "pit_xs_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetv_040", "repghostnet_050",
    "repvit_m0_9", "res2net50_26w_4s", "resnest26d", "resnetv2_18", "rexnet_100", "samvit_base_patch16",
    "selecsls42", "sequencer2d_l", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_s3_tiny_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "vit_relpos_small_patch16_224", "tiny_vit_5m_224",
    "tnt_s_patch16_224", "tresnet_l", "twins_svt_small", "vgg11_bn", "visformer_tiny", "vit_tiny_r_s16_p8_224",
    "vitamin_small_224", "volo_d1_224", "xception41", "xcit_nano_12_p8_224",
)  # fmt: skip
LARGE = ("regnet_y_128gf", "vit_h_14")  # of torchvision: they take more than ten gigabytes
QUICK = (
    "torchvision:resnet18", "torchvision:googlenet", "torchvision:swin_t", "timm:tf_efficientnet_lite0",
    "timm:nf_resnet26", "timm:efficientvit_b0", "timm:levit_128s",
)  # fmt: skip
OPENED = 0.95  # the share that must open with logits


def models(quick: bool) -> list[str]:
    if quick:
        return list(QUICK)
    from torchvision import models

    names = [name for name in models.list_models(module=models) if name not in LARGE]
    return [f"torchvision:{name}" for name in names] + [f"timm:{name}" for name in TIMM]


def opened(source: str) -> tuple[object, ...]:
    """Return a row: layers, default layers, logits, seconds for tracing and checking, and a remark."""
    from pipeline.models import open_model
    from store.errors import Notice, UsageError

    layers = blocks = 0
    logits, seconds = "", 0.0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model = open_model(source, "random:0")
            began = time.perf_counter()
            graph = model.graph
            seconds = time.perf_counter() - began
            layers, blocks = len(graph.layers("all")), len(graph.layers())
            logits = next((layer.name for layer in graph.layers("all") if layer.node == graph.logits), "")
            remark = "" if logits else f"no logits: {graph.no_logits}"
        except UsageError as error:
            remark = f"refused: {error}"
        except Exception as error:
            remark = f"TRACEBACK {type(error).__name__}: {error}"
    remarks = [remark, *(str(w.message) for w in said if issubclass(w.category, Notice))]
    return layers, blocks, logits, seconds, _short("; ".join(filter(None, remarks)))


def _short(remark: str) -> str:
    """Shorten a remark: leave out the words that all such remarks share, and name one submodule of several."""
    found = re.search(r"no layers inside: (.*) \((\d+) % of the parameters\)", remark)
    if not found:
        return remark
    paths = found[1].split(", ")
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{remark[: found.start()].rpartition('submodules')[0]}single nodes: {paths[0]}{more}, {found[2]} %"


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    import os
    import tempfile

    columns = ("model", "layers", "default", "logits", "seconds", "remark")
    report = Report("Opening networks", columns)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder  # findings of earlier runs do not count
        for source in models(quick):
            report.add(source, *opened(source))
            gc.collect()
    rows = report.rows
    report.bars = [
        Bar("share that opens with logits", sum(bool(row[3]) for row in rows) / len(rows), OPENED, at_least=True),
        Bar("tracebacks", sum("TRACEBACK" in str(row[5]) for row in rows), 0),
    ]
    raise SystemExit(report.finish(("torch", "torchvision", "timm"), "weights 0", json_file))


if __name__ == "__main__":
    main()
