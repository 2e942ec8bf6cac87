"""Extension of griffe: docstrings as Markdown, for the pages of the API."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from trim_graph.examples.site.declared import as_markdown


class Docstrings(Extension):
    """Replaces what Markdown would show as it is."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Converts the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)
