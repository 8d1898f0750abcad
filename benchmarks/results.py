"""`make bench`: run the benchmarks and rewrite benchmarks/RESULTS.md, with one section per program.

Only the sections of programs that ran are replaced. Each says when, where and at which commit it was measured.
"""

from __future__ import annotations

import datetime
import re
import subprocess
import sys
from pathlib import Path

import click

FOLDER = Path(__file__).parent
NOT_PROGRAMS = {
    "bench.py",
    "cases.py",
    "picture_values.py",
    "results.py",
    "make_store.py",
    "simulation.py",
    "slurm_task.py",
}


def programs() -> list[str]:
    return sorted(p.stem for p in FOLDER.glob("*.py") if p.name not in NOT_PROGRAMS)


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--quick", is_flag=True, help="Check that they run, in under a minute each. RESULTS.md stays as it is.")
def main(names: tuple[str, ...], quick: bool) -> None:
    unknown = [name for name in names if name not in programs()]
    if unknown:
        raise click.UsageError(f"no benchmark {unknown[0]!r}: there are {', '.join(programs())}")
    sections = _sections()
    missed = []
    for name in names or programs():
        click.echo(f"== {name}", err=True)
        command = [sys.executable, str(FOLDER / f"{name}.py"), *(["--quick"] if quick else [])]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=FOLDER.parent)
        click.echo(done.stdout)
        if done.returncode:
            missed.append(name)
        if done.stdout and not quick:
            sections[name] = f"Measured {_when()}.\n\n```\n{done.stdout.strip()}\n```"
            _write(sections)
    if missed:
        raise SystemExit(f"a bar was missed, or the machine was busy, in: {', '.join(missed)}")


def _when() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(command, check=False, capture_output=True, text=True, cwd=FOLDER)
    return f"{datetime.date.today()} at commit {commit.stdout.strip() or 'unknown'}"


def _sections() -> dict[str, str]:
    try:
        text = (FOLDER / "RESULTS.md").read_text()
    except FileNotFoundError:
        return {}
    parts = re.split(r"^## (\w+)\n", text, flags=re.M)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _write(sections: dict[str, str]) -> None:
    head = "# What was measured\n\nWritten by `make bench`; every ratio is from one run on one machine."
    parts = [f"## {name}\n\n{sections[name]}" for name in sorted(sections)]
    (FOLDER / "RESULTS.md").write_text("\n\n".join([head, *parts]) + "\n")


if __name__ == "__main__":
    main()
