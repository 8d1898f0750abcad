"""What tests share: the checkout's root, faults to inject, and a synthetic store with known answers."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
