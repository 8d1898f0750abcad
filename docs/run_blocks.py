"""Runs the bash and python blocks of a Markdown file in order, which makes the pictures it shows.

From the repository's root: python docs/run_blocks.py docs/feature-visualization.md
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # run from a checkout, installed or not


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(text: str, change: Callable[[str], str] = lambda code: code) -> dict[str, Any]:
    """Python blocks share one namespace, which is returned; bash blocks are `unitscope` commands."""
    import unitscope

    namespace: dict[str, Any] = {}
    for language, written in blocks(text):
        code = change(written)
        if language == "python":
            exec(compile(code, "block", "exec"), namespace)
        for command in code.replace("\\\n", " ").splitlines() if language == "bash" else ():
            words = shlex.split(command, comments=True)
            if words and words[0] == "unitscope":
                unitscope.cli.main(words[1:], standalone_mode=False)
    return namespace


if __name__ == "__main__":
    run(Path(sys.argv[1]).read_text())
