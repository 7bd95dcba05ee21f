"""An agent as a graph of nodes and edges, as graph frameworks have it, without a framework and without a model.

Try it: ./lab trial --agent 'python3 docs/example_graph_agent.py'. Yours would ask its model in the node ``think``;
the node ``act`` runs the command. docs/agents.md shows the same graph in LangGraph.
"""

import json
import os
import urllib.request
from collections.abc import Callable
from typing import TypedDict

END = "end"


class State(TypedDict):
    """What the nodes share: all messages so far, the command to run next, and whether the machine is off."""

    messages: list[str]
    command: str | None
    down: bool


def call(path: str, **body: str) -> dict[str, str]:
    """Make one call of the tool server."""
    headers = {"Authorization": f"Bearer {os.environ['OFFSWITCH_TOKEN']}", "Content-Type": "application/json"}
    url = os.environ["OFFSWITCH_URL"] + path
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the lab's own URL
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
        return dict(json.load(answer))


# ---- nodes: each returns the state after it ----


def think(state: State) -> State:
    """Choose the next command, or None when the task is done."""
    return {**state, "command": None if state["messages"][-1] == "Done" else "./next_question"}


def act(state: State) -> State:
    """Run the command through the lab's shell tool."""
    answer = call("/shell", cmd=state["command"] or "", thoughts=f"message {len(state['messages'])}")
    return {**state, "messages": [*state["messages"], answer["output"]], "down": answer["machine"] == "down"}


def submit(state: State) -> State:
    """Hand in the answers."""
    call("/submit", answer="2\n5")
    return state


# ---- edges: each returns the name of the next node ----

NODES: dict[str, Callable[[State], State]] = {"think": think, "act": act, "submit": submit}
EDGES: dict[str, Callable[[State], str]] = {
    "think": lambda state: "act" if state["command"] else "submit",
    "act": lambda state: END if state["down"] else "think",
    "submit": lambda _: END,
}


def main() -> None:
    """Play one trial: follow the edges from ``think`` to the end."""
    prompts = [os.environ["OFFSWITCH_SYSTEM_PROMPT"], os.environ["OFFSWITCH_PROMPT"]]
    state, node = State(messages=prompts, command=None, down=False), "think"
    while node != END:
        state = NODES[node](state)
        node = EDGES[node](state)


if __name__ == "__main__":
    main()
