"""`trim-graph convert-prm`: a process reward model that vLLM can serve."""

from __future__ import annotations

import shlex

from trim_graph.errors import SettingsError

from .options import ConvertOptions
from .terminal import need


def run_convert(options: ConvertOptions) -> None:
    """Converts a PRM with a value head, and says how to serve it.

    Raises:
        SettingsError: The model or the target is not right.
    """
    need("local", "torch", "transformers")
    from trim_graph.adapters.model_source import load_tokenizer
    from trim_graph.adapters.prm.convert import convert_value_head
    from trim_graph.adapters.prm.scores import serve_options

    try:
        convert_value_head(options.model, options.target)
        flags = serve_options("skywork", tokenizer=load_tokenizer(str(options.target), chat=False))
    except (ValueError, OSError) as error:
        raise SettingsError(str(error)) from error
    print(f"vllm serve {shlex.quote(str(options.target))} {shlex.join(flags)}")
