"""What `plan` estimates for each stage, against a run of it: of the demo, and of it on more photographs.

The estimate is made first, in the same process. A range counts by its middle.
"""

from __future__ import annotations

import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not

from benchmarks.bench import Bar, Report, options
from benchmarks.cases import folder_of_photographs
from pipeline import driver
from pipeline.commands.plan import measure
from pipeline.config import parse_config
from pipeline.job import Job
from pipeline.stages import STAGES

STEPS, UNITS, PHOTOGRAPHS = 128, 16, 512
LONG = 1.0  # seconds; shorter stages are shown and not judged
LIMIT = 1.25


def _sections(quick: bool, source: str) -> dict[str, Any]:
    sections = tomllib.loads((Path(__file__).parent.parent / "configs" / "demo.toml").read_text())
    sections["visualize"] |= {"steps": STEPS // 4, "units_per_layer": UNITS // 4} if quick else {}
    sections["dataset"] = {"source": source}
    return sections


@click.command(help=__doc__)
@options
def main(quick: bool, json_file: str | None) -> None:
    report = Report("plan: seconds estimated and taken", ("case", "stage", "least", "most", "took", "ratio"))
    with tempfile.TemporaryDirectory() as folder:
        _judge(report, "demo", _sections(quick, "package:demo"), Path(folder) / "demo")
        if not quick:
            pictures = Path(folder) / "photographs"
            pictures.mkdir()
            source = folder_of_photographs(pictures, PHOTOGRAPHS)
            _judge(report, f"{PHOTOGRAPHS} photographs", _sections(quick, source), Path(folder) / "many")
    sys.exit(report.finish(("torch", "unitscope"), "0", json_file))


def _judge(report: Report, name: str, sections: dict[str, Any], store: Path) -> None:
    config = parse_config(sections, name)
    planned = Job(config, store, progress=False)
    rates = measure(planned)
    estimates = {stage.name: rates.seconds(planned, stage.work(planned)) for stage in STAGES}
    job = Job(config, store, progress=False)  # a new one, which has to prepare its network again
    _ = job.spec.model
    for stage in STAGES:
        estimate = estimates[stage.name]
        started = time.perf_counter()
        driver.run(job, [stage.name])
        took = time.perf_counter() - started
        if not estimate.high:
            continue
        ratio = estimate.middle / took
        report.add(name, stage.name, *(f"{s:.1f}" for s in (estimate.low, estimate.high, took)), f"{ratio:.2f}")
        if took >= LONG:
            report.bars.append(Bar(f"{name}: {stage.name}, estimate off by a factor", max(ratio, 1 / ratio), LIMIT))


if __name__ == "__main__":
    main()
