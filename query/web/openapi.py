"""The JSON of the page described in OpenAPI 3.1, and every declared question as an address of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from query import resolve
from query.presentation import formats
from query.questions.declarations import BY_NAME, QUESTIONS
from query.questions.question import Parameter, Question
from query.scope import Scope
from query.web.errors import PageError, not_found
from store.errors import UsageError, did_you_mean, shortened

MOST_ROWS = 10_000  # of one answer
_TYPES: dict[str, dict[str, Any]] = {
    "VARCHAR": {"type": ["string", "null"]},
    "INTEGER": {"type": ["integer", "null"]},
    "BIGINT": {"type": ["integer", "null"]},
    "FLOAT": {"type": ["number", "string", "null"]},
    "DOUBLE": {"type": ["number", "string", "null"]},
    "BOOLEAN": {"type": ["boolean", "null"]},
}
_PAGES = {
    "/": "All runs of the store.",
    "/-/search/": "What a text finds: units, layers, classes, photographs.",
    "/{run}/": "The architecture of a run.",
    "/{run}/-/image/{image}/": "One picture of the dataset.",
    "/{run}/-/class/{index}/": "One class.",
    "/{run}/-/drop/{sha256}/": "A picture that was dropped.",
    "/{run}/{layer}/": "All units of a layer.",
    "/{run}/{layer}/-/peek/": "What is shown of a layer beside the architecture.",
    "/{run}/{layer}/{channel}/": "One unit.",
}
_QUERY = {
    "/-/search/": ("q", "run"),
    "/{run}/": ("layer", "open"),
    "/{run}/{layer}/": ("sort", "show", "class", "image"),
    "/{run}/{layer}/{channel}/": ("from", "to"),
    "/{run}/-/image/{image}/": ("layer", "across", "down"),
    "/{run}/-/drop/{sha256}/": ("layer", "across", "down"),
}


def description(pages: Sequence[str]) -> dict[str, Any]:
    """Return the OpenAPI document."""
    paths = {f"{path}index.json": {"get": _page(path)} for path in pages}
    paths |= {f"/-/api/{q.name}/index.json": {"get": _question(q)} for q in QUESTIONS}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "unitscope",
            "version": metadata.version("unitscope"),
            "description": "What every unit of a vision network looks for, and which pictures excite it.",
        },
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error", "status"],
                    "properties": {"error": {"type": "string"}, "status": {"type": "integer"}},
                },
                "Panel": {
                    "type": "object",
                    "required": ["title", "about", "sql", "python", "rows"],
                    "properties": {
                        **{name: {"type": "string"} for name in ("title", "about", "sql", "python")},
                        "rows": {"type": "array", "items": {"type": "object"}},
                    },
                },
                "Page": {
                    "type": "object",
                    "required": ["page"],
                    "properties": {
                        "page": {"type": "string"},
                        "panels": {
                            "type": "object",
                            "additionalProperties": {"$ref": "#/components/schemas/Panel"},
                        },
                    },
                },
            }
        },
    }


def _page(path: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    given = [_parameter(name, "path", True, {"type": "string"}) for name in names]
    given += [_parameter(name, "query", False, {"type": "string"}) for name in _QUERY.get(path, ())]
    return {
        "operationId": "page_" + ("_".join(re.findall(r"\w+", path)) or "runs"),
        "summary": _PAGES[path],
        "parameters": given,
        "responses": _responses({"$ref": "#/components/schemas/Page"}),
    }


def _question(question: Question) -> dict[str, Any]:
    row = {
        "type": "object",
        "required": list(question.columns),
        "properties": {name: _TYPES[kind] for name, kind in question.columns.items()},
        "additionalProperties": False,
    }
    return {
        "operationId": question.name,
        "summary": question.about,
        "description": question.detail,
        "parameters": [_parameter(p.name, "query", p.required, _schema(p), p.help) for p in question.parameters],
        "responses": _responses({"type": "array", "items": row, "maxItems": MOST_ROWS}),
    }


def _parameter(name: str, where: str, required: bool, schema: dict[str, Any], about: str = "") -> dict[str, Any]:
    return {"name": name, "in": where, "required": required, "schema": schema, "description": about}


def _schema(parameter: Parameter) -> dict[str, Any]:
    if parameter.kind == "count":
        return {"type": "integer", "minimum": 1, "maximum": MOST_ROWS}
    if parameter.kind == "number":
        return {"type": "number"}
    if parameter.kind == "flag":
        return {"type": "boolean"}
    if parameter.kind == "choice":
        return {"type": "string", "enum": list(parameter.choices)}
    if parameter.kind in ("layers", "images"):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": "string"}


def _responses(schema: dict[str, Any]) -> dict[str, Any]:
    error = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    return {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": schema}}},
        "400": {"description": "What is wrong with the question.", **error},
        "404": {"description": "There is no such thing.", **error},
        "503": {"description": "Busy: try again.", **error},
    }


def answer(scope: Scope, name: str, given: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Ask a declared question with the parameters of a query string. Raises PageError or UsageError."""
    if name not in BY_NAME:
        hint = did_you_mean(name, BY_NAME) or "/-/api/ lists all"
        raise not_found(f"no question {shortened(name)!r}: {hint}")
    question = BY_NAME[name]
    known = {p.name: p for p in question.parameters}
    values: dict[str, Any] = {}
    for key, text in given:
        if key not in known:
            hint = did_you_mean(key, known) or f"it has {', '.join(known)}"
            raise PageError(400, f"{name} has no parameter {shortened(key)!r}: {hint}")
        if known[key].kind in ("layers", "images"):
            values.setdefault(key, []).append(text)
        elif key in values:
            raise PageError(400, f"{name} takes one {key}")
        else:
            values[key] = _value(known[key], text)
    for parameter in question.parameters:
        if parameter.required and parameter.name not in values:
            raise PageError(400, f"{name} needs {parameter.name}: {parameter.help or 'see /-/api/'}")
        if parameter.kind == "images" and parameter.name in values and len(values[parameter.name]) == 1:
            values[parameter.name] = values[parameter.name][0]
        if parameter.kind == "image" and parameter.name in values:
            # no file of this machine is opened for a visitor
            runs = [dense.run for dense in scope.records.values()]
            run = values.get("model"), values.get("dataset")
            _, values[parameter.name] = resolve.find_image(
                resolve.choose_runs(runs, *run), values[parameter.name], files=False
            )
    if "k" in known and values.get("k") is None:
        values["k"] = min(int(str(known["k"].default)) if known["k"].default is not None else MOST_ROWS, MOST_ROWS)
    return formats.frame_objects(getattr(scope, name)(**values).head(MOST_ROWS))


def status_of(error: UsageError) -> int:
    """Return the HTTP status of an error: 404 if it names what is not there, else 400."""
    text = str(error)
    missing = (" is unknown: ", " is no image_id", "has image_ids", "was rejected")
    return 404 if any(words in text for words in missing) else 400


def _value(parameter: Parameter, text: str) -> Any:
    if parameter.kind == "count":
        if not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MOST_ROWS or len(text) > 9:
            raise PageError(400, f"{parameter.name} is a whole number from 1 to {MOST_ROWS:,}")
        return int(text)
    if parameter.kind == "number":
        try:
            return float(text[:40])
        except ValueError:
            raise PageError(400, f"{parameter.name} is a number") from None
    if parameter.kind == "flag":
        if text not in ("true", "false", "1", "0"):
            raise PageError(400, f"{parameter.name} is true or false")
        return text in ("true", "1")
    return text
