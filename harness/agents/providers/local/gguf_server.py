"""A program that serves one GGUF file on the loopback interface with llama.cpp's server.

The lab runs this program in a separate process, so its memory use and its crashes don't affect the lab. The program
reads one line of JSON from stdin, {"file": path, "name": name, "key": key}. After it has loaded the model, it prints
{"url": address, "tools": bool}. It exits when stdin is closed. llama.cpp logs to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any


def main() -> None:
    """Read the path of a GGUF file from the first line of stdin, and serve the file until stdin is closed."""
    import xllamacpp  # noqa: PLC0415 - an extra that only this process loads

    request: dict[str, Any] = json.loads(sys.stdin.readline())
    settings = xllamacpp.CommonParams()
    settings.model.path = request["file"]
    settings.model_alias = {request["name"]}
    settings.api_keys = [request["key"]]
    settings.ui = False
    # llama.cpp's threads spin while they wait for each other: with too few free cores a token takes 20 times as long.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) // 2)
    server = xllamacpp.Server(settings)
    address = server.listening_address
    ready = {"url": f"{address}/v1", "tools": _supports_tools(address, request["key"])}
    print(json.dumps(ready), flush=True)  # noqa: T201 - the parent process waits for this line
    sys.stdin.read()


def _supports_tools(address: str, key: str) -> bool:
    """Return whether the model's chat template supports tools.

    If the template doesn't support tools, llama.cpp silently ignores the tools in a request.
    """
    props_request = urllib.request.Request(f"{address}/props", headers={"Authorization": f"Bearer {key}"})  # noqa: S310 - http
    with urllib.request.urlopen(props_request) as answer:  # noqa: S310 - as above
        props = json.load(answer)
    return bool(props["chat_template_caps"]["supports_tools"])


if __name__ == "__main__":
    main()
