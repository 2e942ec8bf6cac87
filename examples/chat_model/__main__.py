"""Solves a worksheet: ``python -m trim_graph.examples.chat_model "the greenhouse"``."""

from __future__ import annotations

import argparse

from langchain_core.callbacks import UsageMetadataCallbackHandler

from .chain import build_chain, example_model


def main(arguments: list[str] | None = None) -> None:
    """Prints the solution step by step, and what it took."""
    parser = argparse.ArgumentParser(prog="python -m trim_graph.examples.chat_model", description=__doc__)
    parser.add_argument("worksheet", nargs="?", default="the greenhouse")
    given = parser.parse_args(arguments)
    usage = UsageMetadataCallbackHandler()
    try:
        for text in build_chain(example_model()).stream(given.worksheet, {"callbacks": [usage]}):
            print(text, end="", flush=True)
    except ValueError as error:
        parser.error(str(error))
    (counted,) = usage.usage_metadata.values()
    print(f"\n\ntokens read {counted['input_tokens']}, written {counted['output_tokens']}")


if __name__ == "__main__":
    main()
