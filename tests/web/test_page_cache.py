"""Pages are kept by address and state, the last ones, and never more than so many bytes."""

from __future__ import annotations

from query.web.page_cache import PageCache


def test_a_page_is_kept_for_its_state_alone() -> None:
    cache = PageCache()
    cache.put("/a/", "1", b"page")
    assert cache.get("/a/", "1") == b"page"
    assert cache.get("/a/", "2") is None
    assert cache.get("/b/", "1") is None


def test_the_pages_asked_for_last_stay() -> None:
    cache = PageCache(most=10)
    cache.put("/a/", "1", b"aaaa")
    cache.put("/b/", "1", b"bbbb")
    assert cache.get("/a/", "1")
    cache.put("/c/", "1", b"cccc")
    assert cache.get("/b/", "1") is None
    assert cache.get("/a/", "1") == b"aaaa"
    cache.put("/a/", "1", b"a" * 11)  # larger than the whole
    assert cache.get("/a/", "1") is None
    cache.put("/d/", "1", b"dddd")
    assert cache.get("/d/", "1") == b"dddd"
