"""Pages that were made a moment ago, in memory: many visitors read the same ones."""

from __future__ import annotations

import threading
from collections import OrderedDict

MOST = 64 << 20  # bytes


class PageCache:
    """Keep the pages that were asked for last, up to so many bytes."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._size = most, 0
        self._pages: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, address: str, state: str) -> bytes | None:
        """Return the page at an address, if it was made in this state of its run."""
        with self._lock:
            page = self._pages.get((address, state))
            if page is not None:
                self._pages.move_to_end((address, state))
            return page

    def put(self, address: str, state: str, page: bytes) -> None:
        with self._lock:
            self._size += len(page) - len(self._pages.pop((address, state), b""))
            self._pages[address, state] = page
            while self._size > self._most:
                _, oldest = self._pages.popitem(last=False)
                self._size -= len(oldest)
