"""The graph over engines in this process does what it does over transformers."""

import yaml

from tests.agreement import ASKED, check_agreement, check_watched_steps, run_all
from trim_graph.config import build_graph, make_config
from trim_graph.examples.arithmetic import LARGE, PRM, SMALL, is_right

from .conftest import ENGINE


async def test_answers_and_decisions_are_those_of_transformers(
    small, large, scorer, local_small, local_large, local_scorer
):
    ours = await run_all(small, large, scorer)
    check_agreement(ours, await run_all(local_small, local_large, local_scorer))
    right = sum(is_right(problem, one.text) for problem, one in zip(ASKED, ours, strict=True))
    assert right > len(ASKED) / 2


async def test_the_engine_stops_where_the_text_shows_the_end_of_a_step(small, large):
    await check_watched_steps(small, large)


def test_a_configuration_names_engines(small, large, scorer):
    part = yaml.safe_dump(ENGINE, default_flow_style=True).strip().strip("{}")
    config = make_config(
        yaml.safe_load(
            f"small: {{type: vllm_engine, model: {SMALL}, {part}}}\n"
            f"large: {{type: vllm_engine, model: {LARGE}, {part}}}\n"
            f"scorer: {{type: vllm_engine_prm, model: {PRM}, {part}}}\n"
            "policy: {type: threshold, t: 0.5}\n"
        )
    )
    result = build_graph(config).invoke({"messages": [("user", ASKED[0].question)]})
    assert result["trim"]["usage"]["scorer"]["calls"] > 0
    assert is_right(ASKED[0], result["messages"][-1].text)
