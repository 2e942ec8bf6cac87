"""The example chain: its README runs as printed, and each accepted step is a chunk of the stream."""

import re
from pathlib import Path

import pytest

from trim_graph.examples.chat_model import build_chain, example_model
from trim_graph.examples.chat_model.__main__ import main

README = (Path(__file__).parent.parent.parent / "examples/chat_model/README.md").read_text("utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    return [block for named, block in found if named == language]


def test_it_prints_what_the_readme_shows(capsys):
    (command,) = re.findall(r'chat_model "(.*?)"', blocks("bash")[0])
    main([command])
    assert capsys.readouterr().out == blocks("")[0]


def test_the_readmes_python_runs(capsys):
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {})
    shown = ["2 {'small': 2, 'large': 3} 78", "", "", "The answer is \\boxed{4}.", "['2', '4', '13']"]
    assert capsys.readouterr().out.splitlines() == shown


def test_a_worksheet_that_is_missing_is_reported_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["the cellar"])
    assert "no worksheet has a word of that in its title" in capsys.readouterr().err


async def test_every_way_to_run_the_chain_gives_the_same():
    chain = build_chain(example_model())
    whole = await chain.ainvoke("the library")
    assert whole.endswith("The answer is \\boxed{13}.")
    chunks = [text for text in chain.stream("the library") if text]
    assert (len(chunks), "".join(chunks)) == (whole.count("\n\n") + 1, whole)
    assert "".join([text async for text in chain.astream("the library")]) == whole


@pytest.mark.parametrize("what", [lambda m: m.bind_tools([]), lambda m: m.with_structured_output(dict)])
def test_what_it_does_not_do_is_refused_with_a_way_out(what):
    with pytest.raises(NotImplementedError, match="TrimChatModel"):
        what(example_model())
