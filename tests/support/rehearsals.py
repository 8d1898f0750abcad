"""Rehearsals of a plan with fewer pictures and a narrower network: all that it measures, on less."""

from __future__ import annotations

import pytest

from pipeline.commands import rehearsal


def shorten(patch: pytest.MonkeyPatch) -> None:
    for name, small in (("FEW", 8), ("MANY", 96), ("WIDE", 64), ("ROUNDS", 1)):
        patch.setattr(rehearsal, name, small)
