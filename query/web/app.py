"""The page as a web application: addresses, answers, and how each is sent."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from query import resolve
from query.record.run_tables import Layer
from query.web import address, openapi, pictures
from query.web.answers import image as image_answers
from query.web.answers.architecture import architecture_page, peek
from query.web.answers.class_units import class_page
from query.web.answers.layer import layer_page
from query.web.answers.panel import Answer
from query.web.answers.runs import runs_page
from query.web.answers.search import search_page
from query.web.answers.unit import unit_page
from query.web.answers.why import why_answer
from query.web.errors import PageError, busy, not_found
from query.web.model_runs import LARGEST, WAITING, ModelRuns
from query.web.page_cache import PageCache
from query.web.question_process import QuestionProcess
from query.web.rendering import Pages
from query.web.safety import Safe
from query.web.site import Site, whole
from query.web.static_files import static_file, version
from store.errors import UsageError, printable

FOREVER = "public, max-age=31536000, immutable"
UPLOAD_SECONDS, UPLOADS = 30.0, 4  # of one upload, and how many are in memory at once
# How many answers of each kind are worked on at once: a slow kind delays no other.
AT_ONCE = {"pages": 3, "pictures": 3, "questions": 1, "models": WAITING + 1}

Answering = Callable[[Request], Answer]


@dataclass(frozen=True)
class _Kind:
    """One kind of page: its address, the function that answers, and its template."""

    path: str
    answer: Answering
    template: str
    kept: bool = False  # whether the page depends on its address and the state of the run alone


class Application:
    """A store's page."""

    def __init__(self, root: Path, host: str = "127.0.0.1", model_code: bool = False) -> None:
        self.site = Site(root, model_code)
        self.models = ModelRuns(model_code)
        self.pages = Pages(self.site)
        self._uploads = asyncio.Semaphore(UPLOADS)
        self._questions = QuestionProcess(root)
        self._ahead = ThreadPoolExecutor(1)
        self._ahead.submit(self._read_ahead)
        self._cache = PageCache()
        self._limiters: dict[str, anyio.CapacityLimiter] = {}
        kinds = (
            _Kind("/", lambda _: runs_page(self.site), "runs.html"),
            _Kind("/-/search/", self._search, "search.html"),
            _Kind("/{run}/", self._architecture, "architecture.html", kept=True),
            _Kind("/{run}/-/image/{image}/", self._image, "image.html"),
            _Kind("/{run}/-/class/{index}/", self._class, "class.html", kept=True),
            _Kind("/{run}/-/drop/{sha256}/", self._dropped, "image.html"),
            _Kind("/{run}/{layer}/", self._layer, "layer.html", kept=True),
            _Kind("/{run}/{layer}/-/peek/", self._peek, "peek.html"),
            _Kind("/{run}/{layer}/{channel}/", self._unit, "unit.html", kept=True),
        )
        routes = [
            Route("/-/static/{version}/{name}", self._static),
            Route("/-/api/", partial(self._moved, to="/-/api/index.json")),
            Route("/-/api/index.json", self._openapi),
            Route("/-/api/{question}/index.json", self._question),
            Route("/{run}/-/drop/", self._drop, methods=["POST"]),
            Route("/{run}/-/photograph/{name}.jpg", self._photograph),
            Route("/{run}/-/map/{picture}/{layer}/{channel}.png", self._live_map),
            Route("/{run}/{layer}/-/tiles/{number}.jpg", self._tile),
            Route("/{run}/{layer}/{channel}/-/thumbnail.jpg", self._thumbnail),
            Route("/{run}/{layer}/{channel}/-/maps/{rank}.png", self._stored_map),
            Route("/{run}/{layer}/{channel}/-/visualization/{name}.webp", self._visualization),
        ]
        for kind in kinds:
            routes.append(Route(kind.path, partial(self._page, kind)))
            routes.append(Route(f"{kind.path}index.json", partial(self._json, kind)))
        self.routes = [kind.path for kind in kinds]
        application = Starlette(
            routes=routes,
            middleware=[Middleware(GZipMiddleware, minimum_size=1000, compresslevel=4)],
            exception_handlers={HTTPException: self._http_error, UsageError: self._error, Exception: self._error},
        )
        self.app = Safe(application, host)  # outermost: what goes wrong inside leaves with its headers too

    def _read_ahead(self) -> None:
        """Read what every page of a run needs, before the first visitor waits for it."""
        with suppress(UsageError):
            for name, dense in self.site.scope.records.items():
                architecture_page(dense, None)
                _ = dense.run.statistics, dense.run.signed, self.pages.photographs(name)

    def close(self) -> None:
        self._ahead.shutdown(cancel_futures=True)
        self._questions.close()
        self.models.close()
        self.site.close()

    # Pages

    async def _page(self, kind: _Kind, request: Request) -> Response:
        def made() -> Response:
            where, state = (
                f"{request.url.path}?{request.url.query}",
                self.pages.state(request.path_params.get("run", "")),
            )
            html = self._cache.get(where, state) if kind.kept else None
            if html is None:
                answer = kind.answer(request)
                if answer.get("jump"):
                    return RedirectResponse(answer["jump"], 303)
                html = self.pages.html(kind.template, answer, request.url.path).encode()
                if kind.kept and state:
                    self._cache.put(where, state, html)
            beside = address.with_query("index.json", **dict(request.query_params))
            style = f"</-/static/{version()}/page.css>; rel=preload; as=style"
            link = f'<{beside}>; rel="alternate"; type="application/json", {style}'
            return Response(html, media_type="text/html", headers={"link": link})

        return await self._answered(request, made, _work(request))

    async def _json(self, kind: _Kind, request: Request) -> Response:
        return await self._answered(request, lambda: _as_json(kind.answer(request)), _work(request))

    def _search(self, request: Request) -> Answer:
        return search_page(self.site, request.query_params.get("q", ""), request.query_params.get("run", ""))

    def _architecture(self, request: Request) -> Answer:
        run = request.path_params["run"]
        chosen = request.query_params.get("layer")
        dense, layer = self.site.layer(run, chosen) if chosen else (self.site.record(run), None)
        return architecture_page(dense, layer, request.query_params.get("open", "")[:4000])

    def _peek(self, request: Request) -> Answer:
        return {
            "page": "peek",
            "peek": peek(*self.site.layer(request.path_params["run"], request.path_params["layer"])),
        }

    def _layer(self, request: Request) -> Answer:
        dense, layer = self.site.layer(request.path_params["run"], request.path_params["layer"])
        if not request.query_params:  # the first tile is made while the page is
            self._ahead.submit(pictures.tile, dense, layer, 0)
        return layer_page(dense, layer, request.query_params)

    def _unit(self, request: Request) -> Answer:
        p = request.path_params
        low, high = (_number(request.query_params, name) for name in ("from", "to"))
        dense, unit = self.site.unit(p["run"], p["layer"], p["channel"])
        early = not dense.run.has("visualizations") and unit.channel in pictures.visualizations(dense, unit.layer)
        return unit_page(dense, unit, low, high) | {
            "maps": pictures.maps_kept(dense, unit.layer),
            "rendered_early": early,
        }

    def _image(self, request: Request) -> Answer:
        dense = self.site.record(request.path_params["run"])
        image_id = whole(request.path_params["image"])
        if image_id is None:
            raise not_found(f"an image is a number, as in {address.image(dense.run.name, 0)}")
        _, found = resolve.find_image([dense.run], image_id)
        assert isinstance(found, int)
        answer = image_answers.image_page(dense, found, self._chosen(request))
        return answer | self._of_model(request, found)

    def _dropped(self, request: Request) -> Answer:
        dense = self.site.record(request.path_params["run"])
        sha256 = request.path_params["sha256"]
        dropped = self.models.dropped(dense.run, sha256)
        chosen = self._chosen(request)
        answer = image_answers.dropped_page(dense, sha256, dropped.row, dropped.predictions, chosen)
        return answer | self._of_model(request, sha256)

    def _chosen(self, request: Request) -> Layer | None:
        name = request.query_params.get("layer")
        return self.site.layer(request.path_params["run"], name)[1] if name else None

    def _of_model(self, request: Request, picture: int | str) -> Answer:
        """Return whether the model runs here, and if a place was clicked the units there."""
        dense = self.site.record(request.path_params["run"])
        reason = self.models.why_not(dense.run)
        self.models.warm(self.site.scope, dense.run)
        across, down = (_number(request.query_params, name) for name in ("across", "down"))
        chosen = self._chosen(request)
        place = None
        if chosen and across is not None and down is not None and 0 <= across <= 1 and 0 <= down <= 1:
            if not chosen.has_places:
                raise not_found(f"the positions of layer {chosen.name} are no places of the picture: choose another")
            maps = self.models.maps(self.site.scope, dense, picture, chosen)
            place = image_answers.position(dense, chosen, maps, across, down) | {"across": across, "down": down}
        why = None
        if "why" in request.query_params:
            target, against = (request.query_params.get(name) or None for name in ("target", "against"))
            name = chosen.name if chosen else None
            why = why_answer(self.models.why(self.site.scope, dense, picture, name, target, against))
        clickable = not reason and chosen is not None and chosen.has_places
        return {"clickable": clickable, "runs_here": not reason, "why_not": reason, "place": place, "why": why}

    def _class(self, request: Request) -> Answer:
        dense = self.site.record(request.path_params["run"])
        index = request.path_params["index"]
        if whole(index) is None:
            raise not_found(f"a class is a number here, as in {address.of_class(dense.run.name, 0)}")
        return class_page(dense, resolve.find_class(dense.run, index))

    # Questions

    async def _openapi(self, request: Request) -> Response:
        return _as_json(openapi.description(self.routes))

    async def _question(self, request: Request) -> Response:
        def made() -> Response:
            return _as_json(self._questions.ask(request.path_params["question"], request.query_params.multi_items()))

        return await self._answered(request, made, "questions")

    # Pictures

    async def _photograph(self, request: Request) -> Response:
        p = request.path_params

        def made() -> Response:
            dense, name = self.site.record(p["run"]), p["name"]
            if len(name) == 64:
                return self._picture(self.models.dropped(dense.run, name).jpeg, "image/jpeg", request)
            return self._picture(pictures.photograph(dense, _whole(name, "image")), "image/jpeg", request)

        return await self._answered(request, made, "pictures")

    async def _tile(self, request: Request) -> Response:
        p = request.path_params

        def made() -> Response:
            data = pictures.tile(*self.site.layer(p["run"], p["layer"]), _whole(p["number"], "tile"))
            return self._picture(data, "image/jpeg", request)

        return await self._answered(request, made, "pictures")

    async def _thumbnail(self, request: Request) -> Response:
        p = request.path_params

        def made() -> Response:
            besides = whole(request.query_params.get("besides", ""))
            data = pictures.thumbnail(*self.site.unit(p["run"], p["layer"], p["channel"]), besides)
            return self._picture(data, "image/jpeg", request)

        return await self._answered(request, made, "pictures")

    async def _visualization(self, request: Request) -> Response:
        p = request.path_params

        def made() -> Response:
            kind, direction, repeat = [*p["name"].split("."), "", ""][:3]
            dense, unit = self.site.unit(p["run"], p["layer"], p["channel"])
            if p["name"] == "rendering":
                return self._picture(pictures.rendering(dense, unit), "image/webp", request)
            data = pictures.visualization(unit, kind, direction, _whole(repeat, "repeat"))
            return self._picture(data, "image/webp", request)

        return await self._answered(request, made, "pictures", missing=True)

    async def _stored_map(self, request: Request) -> Response:
        p = request.path_params

        def made() -> Response:
            _, unit = self.site.unit(p["run"], p["layer"], p["channel"])
            return self._picture(pictures.stored_map(unit, _whole(p["rank"], "rank")), "image/png", request)

        return await self._answered(request, made, "pictures")

    async def _live_map(self, request: Request) -> Response:
        p = request.path_params

        def made() -> Response:
            dense, unit = self.site.unit(p["run"], p["layer"], p["channel"])
            picture = p["picture"] if len(p["picture"]) == 64 else _accepted(dense.run, p["picture"])
            return self._picture(self.models.map_picture(self.site.scope, dense, picture, unit), "image/png", request)

        return await self._answered(request, made, "models")

    async def _drop(self, request: Request) -> Response:
        """Take a picture, as a form's file or as the body itself, and go to its page."""
        dense = await anyio.to_thread.run_sync(self.site.record, request.path_params["run"])
        await anyio.to_thread.run_sync(self.models.check, dense.run)
        if self._uploads.locked():
            raise busy("other visitors are sending pictures: try again in a few seconds")
        async with self._uploads:
            data = await _uploaded(request)

        def made() -> Response:
            found = self.models.drop(self.site.scope, dense.run, data)
            return RedirectResponse(address.drop(dense.run.name, found.sha256), 303)

        return await self._answered(request, made, "models")

    async def _static(self, request: Request) -> Response:
        data, kind = static_file(request.path_params["name"])
        return Response(data, media_type=kind, headers={"cache-control": FOREVER})

    async def _moved(self, request: Request, to: str) -> Response:
        return RedirectResponse(to, 307)

    # How answers are made and sent

    def _picture(self, data: bytes, kind: str, request: Request) -> Response:
        """Send a picture. An address that names the present state of the run always means the same picture."""
        present = self.pages.state(request.path_params["run"]) == f"?v={request.query_params.get('v')}"
        return Response(data, media_type=kind, headers={"cache-control": FOREVER if present else "no-cache"})

    async def _answered(
        self, request: Request, made: Callable[[], Response], work: str, missing: bool = False
    ) -> Response:
        """Run a function in a thread, so many of a kind of work at a time. `missing`: bad input means 404."""
        limiter = self._limiters.setdefault(work, anyio.CapacityLimiter(AT_ONCE[work]))
        try:
            return await anyio.to_thread.run_sync(made, limiter=limiter)
        except PageError as error:
            return self._said(request, error.status, str(error))
        except UsageError as error:
            return self._said(request, 404 if missing else openapi.status_of(error), str(error))

    async def _http_error(self, request: Request, error: Exception) -> Response:
        if isinstance(error, PageError):
            return self._said(request, error.status, str(error))
        status = error.status_code if isinstance(error, HTTPException) else 500
        text = (
            "nothing is here: the first page lists all runs" if status == 404 else "this address takes no such request"
        )
        return self._said(request, status, text)

    async def _error(self, request: Request, error: Exception) -> Response:
        if isinstance(error, UsageError):
            return self._said(request, error.status if isinstance(error, PageError) else 400, str(error))
        traceback.print_exception(error, file=sys.stderr)
        return self._said(request, 500, "something went wrong here: the terminal of `unitscope serve` says what")

    def _said(self, request: Request, status: int, text: str) -> Response:
        """Return an error in the form that was asked for."""
        text = printable(text)
        headers = {"retry-after": "3"} if status == 503 else {}
        if request.url.path.endswith(".json"):
            return _as_json({"error": text, "status": status}, status, headers)
        if request.url.path.endswith("/"):
            body = self.pages.error(status, text, request.url.path)
            return Response(body, status, headers, media_type="text/html")
        return Response(f"{text}\n", status, headers, media_type="text/plain")


def _work(request: Request) -> str:
    """Return the kind of work that a page is: a place that was clicked, or the question why, runs the model."""
    return "models" if {"across", "why"} & set(request.query_params) else "pages"


def _as_json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Response(text, status, dict(headers or {}), media_type="application/json")


def _whole(text: str, what: str) -> int:
    number = whole(text)
    if number is None:
        raise not_found(f"{what} {text[:40]!r}: expected a whole number")
    return number


def _accepted(run: Any, text: str) -> int:
    _, found = resolve.find_image([run], _whole(text, "image"))
    assert isinstance(found, int)
    return found


def _number(query: Mapping[str, str], name: str) -> float | None:
    """Return a finite number of the query string, or None."""
    try:
        value = float(query.get(name, "")[:40])
    except ValueError:
        return None
    return value if math.isfinite(value) else None


async def _uploaded(request: Request) -> bytes:
    """Read an upload into memory. Raises PageError: 413 if it is too large, 408 if it takes too long, 400 if broken."""
    too_large = PageError(413, f"pictures of at most {LARGEST >> 20} MiB are taken")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > LARGEST:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > LARGEST:
                    raise too_large
    except ClientDisconnect:
        raise PageError(400, "the upload broke off") from None
    except TimeoutError:
        raise PageError(408, f"the upload took longer than {UPLOAD_SECONDS:g} s") from None
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        return bytes(body)
    return await _file_of_form(request, bytes(body))


async def _file_of_form(request: Request, body: bytes) -> bytes:
    async def stream() -> Any:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=4)
    parser.spool_max_size = LARGEST + 1  # nothing is written to disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise PageError(400, "the upload is no form with a file") from error
    try:
        for value in form.values():
            if not isinstance(value, str):
                return bytes(await value.read())
    finally:
        await form.close()
    raise PageError(400, "the upload has no file: choose a picture first")
