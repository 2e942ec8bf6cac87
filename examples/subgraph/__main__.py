"""``python -m trim_graph.examples.subgraph``: runs both applications and shows what they stream."""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver

from trim_graph.examples.arithmetic import problems
from trim_graph.settings import TrimContext

from .application import TutorContext, solver, tutor, worksheet


def main() -> None:
    """Asks the tutor twice on one thread, then solves a sheet in parallel."""
    graph = solver()
    app = tutor(graph, checkpointer=InMemorySaver())
    thread: RunnableConfig = {"configurable": {"thread_id": "ada"}}
    context = TutorContext(pupil="ada", trim=TrimContext(threshold=0.8))
    questions = [problem.question for problem in problems("standard", 5)]
    for question in questions[:2]:
        print(f"{context.pupil} asks: {question}")
        given = {"messages": [("user", question)]}
        for namespace, event in app.stream(
            given, thread, context=context, stream_mode="custom", subgraphs=True
        ):
            if event["event"] == "accepted":
                print(f"  {namespace[0].split(':')[0]}: {event['writer']:5}  {event['text']}")
        state = app.get_state(thread).values
        print(f"  the tutor's own state: solved={state['solved']}, {len(state['messages'])} messages\n")

    result = worksheet(graph).invoke({"problems": questions[2:]})
    for problem, answer in zip(result["problems"], result["answers"], strict=True):
        print(f"{problem}\n  {answer}")


if __name__ == "__main__":
    main()
