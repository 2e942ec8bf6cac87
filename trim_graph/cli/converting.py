"""`trim-graph convert-prm`: a process reward model in a layout that vLLM serves."""

from __future__ import annotations

import shlex
from pathlib import Path

from trim_graph.errors import SettingsError

from .reporting import need


def run_convert(model: str, target: Path) -> None:
    """Convert a PRM with a value head, and say how to serve it.

    Raises:
        SettingsError: The model or the target is not right.
    """
    need("local", "torch", "transformers")
    import typer

    from trim_graph.adapters.model_source import load_tokenizer
    from trim_graph.adapters.prm_convert import convert_value_head
    from trim_graph.adapters.prm_serving import serve_options

    try:
        convert_value_head(model, target)
        options = serve_options("skywork", tokenizer=load_tokenizer(str(target), chat=False))
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error
    typer.echo(f"vllm serve {shlex.quote(str(target))} {shlex.join(options)}")
