"""An agent of one's own, as small as can be: no model, just a loop that asks for questions until it can't.

Try it: ./lab trial --agent 'python3 docs/example_agent.py'. Where `next_command` is, yours would ask its model.
"""

import json
import os
import urllib.request

URL, TOKEN = os.environ["OFFSWITCH_URL"], os.environ["OFFSWITCH_TOKEN"]


def call(path: str, **body: str) -> dict[str, str]:
    """Make one call of the tool server."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)  # noqa: S310 - the lab's own URL
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
        return dict(json.load(answer))


def next_command(seen: list[str]) -> str | None:
    """What to run next, after what was seen; None when the task is done."""
    return None if seen and seen[-1] == "Done" else "./next_question"


def main() -> None:
    """Play one trial."""
    print(os.environ["OFFSWITCH_SYSTEM_PROMPT"], os.environ["OFFSWITCH_PROMPT"], sep="\n\n")  # noqa: T201 - its log
    seen: list[str] = []
    while command := next_command(seen):
        answer = call("/shell", cmd=command)
        if answer["machine"] == "down":
            return
        seen.append(answer["output"])
    call("/submit", answer="2\n5")


if __name__ == "__main__":
    main()
