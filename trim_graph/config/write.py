"""Writes a configuration file anew with another policy, and leaves the rest of its text as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trim_graph.errors import SettingsError

from .errors import read_yaml
from .load import TrimConfig, load_config, make_config


def with_policy(text: str, policy: Any) -> str:
    """Replaces the policy in the text of a configuration file; comments stay where they are.

    Where that cannot be done (an anchor that is used elsewhere), the whole is written anew, without comments.

    Args:
        text: YAML, a valid configuration.
        policy: As a configuration names it.
    """
    import yaml

    data = yaml.safe_load(text)
    wanted = {**data, "policy": policy}
    root: Any = yaml.compose(text)
    name, node = next((key, value) for key, value in root.value if key.value == "policy")
    start, end = node.start_mark.index, node.end_mark.index
    # The end of a block shows where the next token begins: what lies between belongs to the next key.
    old = text[start:end]
    kept = old
    while (line := kept.rstrip("\n").rpartition("\n"))[1] and line[2].strip().startswith("#"):
        kept = line[0] + "\n"
    kept = kept.rstrip()
    written = yaml.safe_dump(policy, default_flow_style=True, width=10_000, sort_keys=False)
    flow = written.removesuffix("\n").removesuffix("\n...").strip()
    new = f"{text[: name.end_mark.index]}: {flow}{old[len(kept) :]}{text[end:]}"
    try:
        if yaml.safe_load(new) == wanted:
            return new
    except yaml.YAMLError:
        pass
    return str(yaml.safe_dump(wanted, sort_keys=False, width=110))


def check_place(source: Path | None, out: Path) -> None:
    """Refuses a place for a configuration where it would mean something else.

    Args:
        source: The configuration it is made of; None for that of the example models.
        out: Where it is to be written.

    Raises:
        SettingsError: The folder does not exist or cannot be written to, or relative paths in ``source``
            would lead elsewhere from there.
    """
    folder = out.absolute().parent
    if not folder.is_dir():
        raise SettingsError(f"--out {out}: the folder {folder} does not exist")
    if out.is_dir() or not os.access(out if out.exists() else folder, os.W_OK):
        raise SettingsError(f"--out {out} cannot be written")
    if source is None or folder == source.absolute().parent:
        return
    data, _ = read_yaml(source)
    data.pop("policy", None)
    try:
        there: TrimConfig | None = make_config({**data, "policy": "small_only"}, base=folder)
    except SettingsError:
        there = None
    here = load_config(source, overrides={"policy": "small_only"})
    if there != here:
        raise SettingsError(
            f"--out {out}: relative paths in {source} lead elsewhere from there: choose a file beside it"
        )


def write_config(source: Path | None, out: Path, policy: dict[str, Any]) -> None:
    """Writes a configuration with a policy.

    Args:
        source: The configuration it is made of; None for that of the example models.
        out: Where it goes; may be ``source``.
        policy: The new one. Paths of policy files, at any depth, become relative to ``out``.
    """
    policy = _relative(policy, out.absolute().parent)
    text = "small: {type: example}\nlarge: {type: example}\nscorer: {type: example}\npolicy: small_only\n"
    if source is not None:
        text = source.read_text(encoding="utf-8")
    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        beside.write_text(with_policy(text, policy), encoding="utf-8")
        load_config(beside)
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def _relative(policy: Any, folder: Path) -> Any:
    """Names policy files, at any depth, from a folder."""
    if isinstance(policy, list):
        return [_relative(inner, folder) for inner in policy]
    if not isinstance(policy, dict):
        return policy
    if policy.get("type") == "file":
        return {**policy, "path": os.path.relpath(policy["path"], folder)}
    return {key: _relative(value, folder) for key, value in policy.items()}
