"""Before the first container: whether the key is right, the model there and for how long, and what it may cost."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any
from urllib.parse import quote

import httpx2

from harness.agents.providers.client import ProviderClient
from harness.agents.providers.failures import FailureKind, error_for, read_failure
from harness.agents.providers.model import ApiModel
from harness.agents.providers.prices import Price
from harness.errors import ModelError, UnknownModelError
from harness.store.records import RunSpec
from harness.store.transcript import Usage
from harness.tasks.conditions import render
from harness.tasks.registry import task_named

Say = Callable[[str], None]
NOT_FOUND = 404
# A guess at a usual trial, to be replaced by what the first trials used: what a model writes in a turn, its reasoning
# included, what it is told in return, and how many calls it makes beside those for questions.
WRITTEN, TOLD, QUESTIONS, OTHER_CALLS = 400, 60, 6, 4
BYTES_PER_TOKEN = 4


async def preflight(model: ApiModel, line: ProviderClient, run: RunSpec, say: Say) -> None:
    """Check the model, and guess what the run may come to. Raises ModelError where a trial could not work."""
    await check(model, line, say)
    task = task_named(run.task)
    words = render(task.system, task.user, run.condition)
    calls = (run.options.questions or QUESTIONS) + OTHER_CALLS
    usage = estimate(opening_tokens(model, words.system + words.user), calls)
    say(estimate_text(run.n, usage, model.price))


async def check(model: ApiModel, line: ProviderClient, say: Say) -> None:
    """Ask the provider about key and model. Raises ModelError where they are wrong; an announced end is said."""
    listed = await _Asking(model, line, say).about_model()
    today = datetime.now(UTC).date()
    day = announced(listed) or model.choice.provider.shutdown_of(model.choice.model)
    if day is not None:
        when = f"is announced to be shut down on {day}" if day > today else f"was announced to be shut down on {day}"
        say(f"{line.who} {when}.")


def announced(listed: dict[str, Any]) -> date | None:
    """The date in a provider's own description of a model: OpenAI's shutdown_date, Anthropic's retires_at."""
    said = listed.get("shutdown_date") or listed.get("retires_at")
    try:
        return datetime.fromisoformat(str(said)).date() if said else None
    except ValueError:
        return None


def estimate(opening: int, calls: int) -> Usage:
    """The tokens of a usual trial: each call sends all that was said before. ``opening`` is in tokens."""
    grown = calls * (calls - 1) // 2 * (WRITTEN + TOLD)
    return Usage(input=calls * opening + grown, output=calls * WRITTEN)


def estimate_text(n: int, usage: Usage, price: Price | None) -> str:
    """The estimate for n trials in a sentence."""
    cost = price.cost(usage) if price else None
    worth = f"about ${cost * n:,.2f} by prices of {price.date}" if price and cost is not None else "the cost is unknown"
    trials = "1 trial" if n == 1 else f"{n} trials"
    return (
        f"A guess for {trials}: {usage.input * n:,} tokens read and {usage.output * n:,} written, {worth}; "
        "--max-cost and --max-tokens-total set a limit."
    )


def opening_tokens(model: ApiModel, words: str) -> int:
    """How many tokens a conversation begins with, roughly."""
    return (len(words) + len(json.dumps(model.parameters))) // BYTES_PER_TOKEN


class _Asking:
    """Asks for one model, then for the list of all."""

    def __init__(self, model: ApiModel, line: ProviderClient, say: Say) -> None:
        self._line, self._say = line, say
        self._path = "/v1/models" if model.choice.provider.api == "messages" else "/models"
        self._provider, self._model = model.choice.provider, model.choice.model

    async def about_model(self) -> dict[str, Any]:
        """The provider's description of the model; empty where it gives none."""
        found = await self._get(f"{self._path}/{quote(self._model, safe='')}")
        if found is not None:
            return found
        listed = await self._get(self._path)
        names = [str(each.get("id")) for each in _entries(listed)]
        same = {self._model, f"models/{self._model}", f"{self._model}:latest"}
        if listed is None or not names or same & set(names):
            return {}
        near = difflib.get_close_matches(self._model, names, n=3, cutoff=0.5) or names[:5]
        raise UnknownModelError(f"{self._provider.name} has no model '{self._model}'. It has {', '.join(near)}.")

    async def _get(self, path: str) -> dict[str, Any] | None:
        """What stands there; None where there is no such thing, or it can't be read. Raises ModelError."""
        sdk = self._line.sdk
        try:
            response: httpx2.Response = await sdk.client.get(path, cast_to=httpx2.Response)
            body = response.json()
        except sdk.status_error as error:
            refused: httpx2.Response = error.response  # type: ignore[attr-defined] # both SDKs' status errors have one
            if refused.status_code == NOT_FOUND:
                return None
            self._refused(refused)
            return {}
        except sdk.connection_error as error:
            reason = str(error.__cause__ or error)
            raise ModelError(
                f"{self._provider.name} can't be reached at {self._provider.base_url}: {reason}."
            ) from None
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _refused(self, response: httpx2.Response) -> None:
        failure = read_failure(response.status_code, response.text)
        if failure.trouble is FailureKind.KEY and response.status_code != httpx2.codes.FORBIDDEN:
            raise error_for(failure, self._line.who, self._provider.key, self._line.key, first=True)
        self._say(f"{self._line.who} could not be checked beforehand (status {response.status_code}): going on.")


def _entries(listed: dict[str, Any] | None) -> list[dict[str, Any]]:
    data = (listed or {}).get("data")
    return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
