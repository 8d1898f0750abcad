"""What the page answers if it cannot answer."""

from __future__ import annotations

from store.errors import UsageError


class PageError(UsageError):
    """An answer that is no page: `status` is an HTTP status, the text one sentence that says what to do."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def not_found(text: str) -> PageError:
    return PageError(404, text)


def busy(text: str) -> PageError:
    return PageError(503, text)
