"""Reads a YAML file and explains its errors: the line, the key, what was seen, what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trim_graph.errors import SECRET_NAME, SettingsError, may_be_shown, nearest

Place = tuple[str | int, ...]
Lines = Callable[[Place], int | None]

SHOWN = 2
"""Problems shown at once; more would scroll the first one away."""
_GUARDED = ("base_url", "checkpoint", "ledger")
"""Keys whose values may hold a password; so may those that `SECRET_NAME` matches."""
_QUOTED = re.compile(r"'([^']*)'")
_PUNCTUATION = 2
"""Letters of a mark or an escape, as in ``':'`` and ``'\\t'``; a longer text may be a secret."""


def read_yaml(file: Path) -> tuple[dict[str, Any], Lines]:
    """Reads a YAML mapping, and returns with it a function from a key's place to its line.

    Raises:
        SettingsError: There is no such file, or it does not hold a YAML mapping.
        ImportError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f'reading {file} needs PyYAML: pip install "trim-graph[cli]"') from error
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(
            f"configuration file {file} does not exist (looked for {file.absolute()})"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise SettingsError(f"configuration file {file} cannot be read: {error.strerror}") from error
    malformed = None
    try:
        node, data = _parsed(text, file)
    except yaml.YAMLError as error:
        malformed = _yaml_problem(error)
    if malformed is not None:  # out of the except clause: PyYAML's own error repeats the line
        raise SettingsError(f"{file}{malformed}")
    if not isinstance(data, dict):
        held = _shown(data) if may_be_shown(data) else "no mapping"
        seen = "is empty" if data is None else f"holds {held}"
        raise SettingsError(f"{file} {seen}; it needs the keys small, large and policy (see solve --help)")
    return data, lambda place: _line(node, place)


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "malformed"
    return f"{place}: not valid YAML: {_QUOTED.sub(_shown_mark, str(problem))}"


def _shown_mark(quoted: re.Match[str]) -> str:
    """Returns a mark or a kind of token, such as ``'<scalar>'``, as it is."""
    short = len(quoted[1]) <= _PUNCTUATION or quoted[1].startswith("<")
    return quoted[0] if short else "(what stands there)"


def _parsed(text: str, file: Path) -> tuple[Any, Any]:
    """Returns the tree of nodes, which know their lines, and the data."""
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _refuse_repeats(node, file)
        return node, None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _entries(node: Any) -> Iterator[tuple[str | int, Any, Any]]:
    """Returns key, what marks its line, and value of every entry of a mapping or sequence node."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        yield from ((key.value, key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode))
    elif isinstance(node, yaml.SequenceNode):
        yield from ((index, value, value) for index, value in enumerate(node.value))


def _refuse_repeats(node: Any, file: Path) -> None:
    """Refuses a key that is set twice: YAML takes the last silently, so a limit in the first is lost."""
    if node is None:
        return
    pending, known = [node], {id(node)}
    while pending:
        seen: set[str | int] = set()
        for key, mark, value in _entries(pending.pop()):
            if key in seen:
                raise SettingsError(f"{file}, line {mark.start_mark.line + 1}: {key} is set twice")
            seen.add(key)
            if id(value) not in known:  # an alias may lead back to a node above
                known.add(id(value))
                pending.append(value)


def _line(node: Any, place: Place) -> int | None:
    line = None
    for step in place:
        found = next(((mark, value) for key, mark, value in _entries(node) if key == step), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def explain(
    error: ValidationError,
    data: dict[str, Any],
    schema: dict[str, Any],
    name: str,
    lines: Lines | None,
    overrides: dict[str, Any],
) -> str:
    """Says what pydantic found wrong, one line a problem.

    Args:
        error: Of validating ``data``.
        data: What was validated.
        schema: JSON schema of the model, to know which keys there are.
        name: Of the file.
        lines: Finds the line of a key.
        overrides: What of the data came from the command line.
    """
    messages = []
    # A misspelt key comes with the complaint that the right one is missing: the cause is first.
    problems = sorted(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    for item in problems[:SHOWN]:
        place, keys = _walk(item["loc"], data, schema)
        line = lines(place) if lines else None
        where = name if line is None else f"{name}, line {line}"
        if _is_override(place, overrides):
            where = "command line"
        messages.append(f"{where}: {_path(place)}{_problem(item, place, keys)}")
    if len(problems) > SHOWN:
        messages[-1] += f" (and {len(problems) - SHOWN} more)"
    return "\n".join(messages)


def explain_value(error: ValidationError, value: Any, schema: dict[str, Any], name: str) -> str:
    """Says in one line what pydantic found wrong in a value that came from no file.

    Args:
        error: Of validating ``value``.
        value: What was validated.
        schema: JSON schema of the value.
        name: What the line begins with.
    """
    return explain(error, value, schema, name, None, {}).replace(f"\n{name}: ", "; ")


def _is_override(place: Place, overrides: dict[str, Any]) -> bool:
    if not place or place[0] not in overrides:
        return False
    given = overrides[str(place[0])]
    return place[0] == "policy" or len(place) == 1 or not isinstance(given, dict) or place[1] in given


def _walk(loc: Sequence[str | int], data: Any, schema: dict[str, Any]) -> tuple[Place, list[str]]:
    """Follows a pydantic location through data and schema.

    Returns:
        The location without the names of union members, and the keys known beside its last key.
    """
    place: list[str | int] = []
    here: dict[str, Any] = schema
    keys: list[str] = []
    for index, step in enumerate(loc):
        here, union = _resolved(here, data, schema)
        is_tag = union and isinstance(data, dict) and step == data.get("type")
        inside = (isinstance(data, dict) and step in data and not is_tag) or isinstance(step, int)
        if not inside and (is_tag or index < len(loc) - 1):
            continue
        properties = here.get("properties", {})
        required = here.get("required", ())
        keys = sorted(properties, key=lambda key: (key != "type", key not in required))
        place.append(step)
        inner = properties.get(step, here.get("additionalProperties"))
        here = here.get("items", {}) if isinstance(step, int) else inner if isinstance(inner, dict) else {}
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            data = None
    return tuple(place), keys


def _resolved(here: dict[str, Any], data: Any, schema: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Follows references and unions to the member that the data name, and says whether there was a union."""
    union = False
    while True:
        if "$ref" in here:
            here = schema["$defs"][here["$ref"].removeprefix("#/$defs/")]
        elif "discriminator" in here:
            chosen = data.get("type") if isinstance(data, dict) else data
            reference = here["discriminator"]["mapping"].get(chosen) if isinstance(chosen, str) else None
            if reference is None:
                return {}, True
            union = True
            here = {"$ref": reference}
        elif "anyOf" in here:
            here = next((m for m in here["anyOf"] if m.get("type") != "null"), {})
        else:
            return here, union


def _path(place: Place) -> str:
    text = ""
    for step in place:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return f"{text}: " if text else ""


def _problem(item: Any, place: Place, keys: list[str]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{nearest(str(place[-1]), keys)}"
    if kind == "missing":
        return "this key is missing"
    seen = _seen(place, item["input"])
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        tag = f" {context['tag']!r}" if may_be_shown(context["tag"]) else ""
        return f"unknown type{tag}{nearest(context['tag'], tags)}"
    if kind in ("union_tag_not_found", "model_type", "model_attributes_type", "dict_type"):
        return f"{seen}expected a mapping{' with a type' if 'tag' in kind else ''}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error":
        # Begun with the key, a message says itself what was seen, or hides it: a URL may hold a password.
        for prefix in (f"{place[-1]}=", f"{place[-1]} ", "model=") if place else ():
            if message.startswith(prefix):
                return message.removeprefix(prefix)
        return message if isinstance(item["input"], dict) else f"{seen}{message}"
    return f"{seen}it {message}"


def _seen(place: Place, value: Any) -> str:
    """Says what was seen, where that may be repeated."""
    guarded = any(key in _GUARDED or SECRET_NAME.search(str(key)) for key in place)
    return "" if guarded or not may_be_shown(value) else f"is {_shown(value)}; "


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
