"""The JSON schema of configuration files, for editors and checks in CI."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from trim_graph.settings import ConfigSection

from .load import TrimConfig

_ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n     +.+)*)", re.MULTILINE)
"""An attribute in the docstring of a class."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """Returns the JSON schema of a configuration file: keys with type, default and bounds.

    A key has its meaning where one is documented.

    It is derived from the models that read a file. A file that it accepts may still be refused: whether
    policy, scorer and models go together, and whether paths exist, no schema says.
    """
    schema = TrimConfig.model_json_schema()
    for section in _sections(ConfigSection):
        part = schema if section is TrimConfig else schema["$defs"].get(section.__name__, {})
        properties = part.get("properties", {})
        for name, text in _documented(section):
            if name in properties:
                properties[name].setdefault("description", text)
    return {"$schema": DIALECT, **schema, "title": "trim-graph configuration"}


def _sections(base: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for section in base.__subclasses__():
        yield section
        yield from _sections(section)


def _documented(section: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yields the fields of a class and of its bases with the docstring below each, the class's own first."""
    for kind in section.__mro__:
        if not issubclass(kind, BaseModel) or not kind.__module__.startswith("trim_graph."):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                yield field.target.id, _plain(str(below.value.value))
        for name, text in _ATTRIBUTE.findall(inspect.getdoc(kind) or ""):
            yield name, _plain(text)


def _plain(text: str) -> str:
    return " ".join(text.replace("``", "").split())
