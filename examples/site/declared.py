"""What the code declares of a class: its fields with types, defaults, bounds and meanings, as Markdown."""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from griffe import Docstring, DocstringSectionKind
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typing_extensions import get_type_hints, is_typeddict

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@dataclass(frozen=True)
class Declared:
    """One field, parameter or key.

    Attributes:
        name: Its name.
        kind: Its type, with bounds; Markdown.
        default: Its default; Markdown.
        meaning: Its description; Markdown, empty if the code has none.
    """

    name: str
    kind: str
    default: str
    meaning: str


def fields_of(kind: type[BaseModel], *, skip: Iterable[str] = ()) -> list[Declared]:
    """Returns the fields of a pydantic model in order.

    The meaning is the description of the field, else the docstring below it, else its entry in the section
    "Attributes" of the class, else in the section "Args" of the object that the class docstring names, else
    the first line of the docstring of the model that the field holds.
    """
    documented = _attribute_docs(kind)
    return [
        Declared(
            name,
            _kind_of_field(field),
            _default(field),
            sentence(field.description or documented.get(name, "") or _meaning_of(field.annotation)),
        )
        for name, field in kind.model_fields.items()
        if name not in skip
    ]


def models_in(hint: Any) -> list[type[BaseModel]]:
    """Returns the pydantic models within a type, such as a union of them, in order."""
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return [hint]
    return [model for inner in get_args(hint) for model in models_in(inner)]


def mappings_in(hint: Any) -> list[type]:
    """Returns the `TypedDict`s within a type, each before those of its keys."""
    if is_typeddict(hint):
        keys = get_type_hints(hint, include_extras=True).values()
        return list(dict.fromkeys([hint, *(inner for key in keys for inner in mappings_in(key))]))
    return list(dict.fromkeys(one for inner in get_args(hint) for one in mappings_in(inner)))


def keys_of(kind: type) -> list[Declared]:
    """Returns the keys of a `TypedDict` in order; the type says whether a key may be absent."""
    documented, hints = _attribute_docs(kind), get_type_hints(kind, include_extras=True)
    return [
        Declared(
            name,
            type_name(hint) + (", may be absent" if _may_be_absent(hint) else ""),
            "",
            sentence(documented.get(name, "")),
        )
        for name, hint in hints.items()
    ]


def arguments_of(function: Any, *, only: Iterable[str]) -> list[Declared]:
    """Returns arguments of a callable, with the meanings of its docstring's section "Args"."""
    meanings = _section(inspect.getdoc(function) or "", DocstringSectionKind.parameters)
    call = function.__init__ if inspect.isclass(function) else function
    hints, parameters = get_type_hints(call, include_extras=True), inspect.signature(call).parameters
    return [
        Declared(
            name,
            type_name(hints[name]),
            _value(parameters[name].default),
            sentence(meanings.get(name, "")),
        )
        for name in only
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table; a cell holds one line, and no bar that ends it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines) + "\n"


def sentence(text: str) -> str:
    """Returns a docstring's text as one paragraph of Markdown that begins with a capital letter."""
    text = as_markdown(" ".join(text.split()))
    return text[:1].upper() + text[1:] if re.match(r"[a-z]", text) else text


def summary_of(kind: Any) -> str:
    """Returns the text of an object's docstring before its first section, as Markdown."""
    text = inspect.getdoc(kind) or ""
    parts = Docstring(text).parse("google", warnings=False)
    paragraphs = [part.value for part in parts[:1] if part.kind is DocstringSectionKind.text]
    return as_markdown("\n\n".join(paragraphs))


def as_markdown(text: str) -> str:
    """Returns a docstring's text without the marks of reStructuredText: doubled backticks and colons."""
    return re.sub(r" ?::$", ":", re.sub(r"``([^`]+)``", r"`\1`", text), flags=re.MULTILINE)


def type_name(hint: Any) -> str:
    """Returns a type as Markdown, as its declaration reads, without what it is annotated with."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Annotated, NotRequired, Required):
        return type_name(inner[0])
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value) if not isinstance(value, str) else value}`" for value in inner)
    if origin in (Union, types.UnionType):
        if len(parts := [_type_value(one) for one in inner if _type_value(one)]) > 1:
            return "mapping with the type " + ", ".join(f"`{part}`" for part in parts)
        names = [type_name(one) for one in inner if one is not type(None)]
        return " or ".join(dict.fromkeys([*names, *(["`null`"] if type(None) in inner else [])]))
    if origin in (dict, Mapping):
        return f"mapping from {type_name(inner[0])} to {type_name(inner[1])}"
    if origin in (list, tuple, Sequence):
        return f"list of {type_name(inner[0])}"
    if origin is Callable:
        return "function"
    name = getattr(hint, "__name__", None) or str(hint).rpartition(".")[2]
    return {"NoneType": "`null`", "Any": "any"}.get(name, f"`{name}`")


def _meaning_of(hint: Any) -> str:
    models = models_in(hint)
    return (inspect.getdoc(models[0]) or "").split("\n")[0] if len(models) == 1 else ""


def _may_be_absent(hint: Any) -> bool:
    origin: Any = get_origin(hint)
    return origin is NotRequired


def _type_value(hint: Any) -> str:
    """Returns the values of ``type`` that name a class in a configuration file; empty if none does."""
    if not isinstance(hint, type) or not issubclass(hint, BaseModel) or "type" not in hint.model_fields:
        return ""
    return "`, `".join(get_args(hint.model_fields["type"].annotation))


def _kind_of_field(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(one, name):g}"
        for one in field.metadata
        for name, sign in _BOUNDS.items()
        if getattr(one, name, None) is not None
    ]
    return ", ".join([type_name(field.annotation), *bounds])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return _value(field.get_default(call_default_factory=True, validated_data={}))


def _value(value: Any) -> str:
    if value in (inspect.Parameter.empty, PydanticUndefined):
        return "required"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
        return f"`{json.dumps(value)}`" if value else "its defaults"
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _attribute_docs(kind: type) -> dict[str, str]:
    """Returns the documentation of a class's attributes by name, that of its bases included."""
    found: dict[str, str] = {}
    for one in _with_bases(kind):
        found |= _docs_within(one)
    return found


def _with_bases(kind: type) -> Iterator[type]:
    """Yields the classes that declare the fields of a class, bases first."""
    if is_typeddict(kind):
        for base in getattr(kind, "__orig_bases__", ()):
            if is_typeddict(base):
                yield from _with_bases(base)
        yield kind
    else:
        # A generic class with its types filled in has no source of its own.
        named = (one for one in reversed(kind.__mro__) if "[" not in one.__name__)
        yield from (one for one in named if one.__module__.startswith("trim_graph"))


@cache
def _docs_within(kind: type) -> Mapping[str, str]:
    text = inspect.getdoc(kind) or ""
    named = _named_object(text)
    found = {} if named is None else _section(inspect.getdoc(named) or "", DocstringSectionKind.parameters)
    found |= _section(text, DocstringSectionKind.attributes)
    body = ast.parse(dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            found[field.target.id] = below.value.value
    return found


def _named_object(text: str) -> Any:
    """Returns the object that the first line of a docstring names by its path in backticks."""
    from importlib import import_module

    for path in re.findall(r"`(trim_graph(?:\.\w+)+)`", text.split("\n\n", 1)[0]):
        module, _, name = path.rpartition(".")
        found = getattr(import_module(module), name, None)
        if callable(found):
            return found
    return None


def _section(text: str, kind: DocstringSectionKind) -> dict[str, str]:
    parts = Docstring(text).parse("google", warnings=False)
    return {entry.name: entry.description for part in parts if part.kind is kind for entry in part.value}
