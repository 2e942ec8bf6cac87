"""A chain: find a worksheet, ask the router about it, give its text."""

from __future__ import annotations

from typing import Any

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable

from trim_graph.adapters import ChatTransformers, TransformersProcessReward
from trim_graph.chat_model import TrimChatModel, create_trim_chat_model
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL
from trim_graph.policies import threshold

from .worksheets import WORKSHEETS, WordRetriever


def example_model() -> TrimChatModel:
    """Builds the router over the three models that come with trim-graph."""
    small, large = ChatTransformers(model=str(SMALL)), ChatTransformers(model=str(LARGE))
    return create_trim_chat_model(small, large, TransformersProcessReward(str(PRM)), policy=threshold(0.9))


def build_chain(model: Runnable[Any, Any]) -> Runnable[str, str]:
    """Chains retriever, prompt, model and parser; `stream` gives each step as it is accepted.

    Args:
        model: Any chat model.
    """
    retriever = WordRetriever(documents=WORKSHEETS)
    prompt = ChatPromptTemplate([("human", "{worksheet}")])
    return retriever | _found | prompt | model | StrOutputParser()


def _found(documents: list[Document]) -> dict[str, str]:
    if not documents:
        raise ValueError("no worksheet has a word of that in its title")
    return {"worksheet": documents[0].page_content}
