"""Serves one GGUF file on loopback: ``python -m harness.agents.providers.local.gguf_server``, with llama.cpp's own server in it.

It has a process of its own: the weights are not the lab's memory, and what crashes in them is not the lab. One JSON
object a line: {"file": path, "name": name, "key": key} comes in, {"url": address, "tools": bool} goes out once the
model is loaded; it ends when nothing more can come in. What llama.cpp logs goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any


def main() -> None:
    """Serve until whoever started it hangs up."""
    import xllamacpp  # noqa: PLC0415 - an extra, which this process alone loads

    asked: dict[str, Any] = json.loads(sys.stdin.readline())
    settings = xllamacpp.CommonParams()
    settings.model.path = asked["file"]
    settings.model_alias = {asked["name"]}
    settings.api_keys = [asked["key"]]
    settings.ui = False
    # Its threads wait for each other by spinning: more of them than cores are free take 20 times as long a token.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) // 2)
    server = xllamacpp.Server(settings)
    told = {"url": f"{server.listening_address}/v1", "tools": _knows_tools(server.listening_address, asked["key"])}
    print(json.dumps(told), flush=True)  # noqa: T201 - what whoever started it waits for
    sys.stdin.read()


def _knows_tools(address: str, key: str) -> bool:
    """Whether the file's chat template has a place for tools: where it has none, the model isn't told of them."""
    request = urllib.request.Request(f"{address}/props", headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - http
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - as above
        props = json.load(answer)
    return bool(props["chat_template_caps"]["supports_tools"])


if __name__ == "__main__":
    main()
