"""Worksheets, and a retriever that finds one by the words of a question."""

from __future__ import annotations

import re

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

_RULE = "Always keep only the last two digits. What is the result?"

WORKSHEETS = [
    Document(
        "Start with 47. Step 1: add 38. Step 2: multiply by 7. Step 3: subtract 21. "
        f"Step 4: take the remainder after dividing by 9. {_RULE}",
        metadata={"title": "Seedlings in the greenhouse"},
    ),
    Document(
        "Start with 62. Step 1: subtract 35. Step 2: multiply by 3. Step 3: add 44. "
        f"Step 4: take the remainder after dividing by 7. {_RULE}",
        metadata={"title": "Tickets at the harbour"},
    ),
    Document(
        f"Start with 15. Step 1: multiply by 6. Step 2: add 27. Step 3: subtract 13. Step 4: add 9. {_RULE}",
        metadata={"title": "Books in the library"},
    ),
]


class WordRetriever(BaseRetriever):
    """Finds the documents whose title has most words of the query; those with none are left out."""

    documents: list[Document]
    k: int = 1
    """Most documents to return."""

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        asked = _words(query)
        hits = [(len(asked & _words(one.metadata["title"])), one) for one in self.documents]
        found = sorted((hit for hit in hits if hit[0]), key=lambda hit: -hit[0])
        return [document for _, document in found[: self.k]]


def _words(text: str) -> set[str]:
    """Returns the words of four letters and more; the short ones say little."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 3}
