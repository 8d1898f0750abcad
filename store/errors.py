"""The one exception whose text is meant for a person."""


class UsageError(Exception):
    """Bad usage or bad input: one line that names the thing, what was found and what to do. The CLI exits 2."""
