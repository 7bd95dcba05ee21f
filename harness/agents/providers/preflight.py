"""Checks a live model's API key and name, and estimates a run's cost, before the run's first container starts."""

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
from harness.agents.providers.prices import Price
from harness.errors import ModelError, UnknownModelError
from harness.store.records import RunSpec
from harness.store.transcript import Usage
from harness.tasks.conditions import render
from harness.tasks.registry import task_named

Say = Callable[[str], None]
NOT_FOUND = 404
# Rough figures for a typical trial; the budget uses the real ones once trials have finished.
OUTPUT_TOKENS = 400  # that a model writes in a turn, including its reasoning
ANSWER_TOKENS = 60  # in the answer to a tool call
QUESTIONS = 6
OTHER_CALLS = 4  # tool calls that fetch no question
BYTES_PER_TOKEN = 4


async def preflight(
    client: ProviderClient, parameters: dict[str, Any], price: Price | None, run: RunSpec, say: Say
) -> None:
    """Check the API key and the model's name, and print an estimate of the run's cost.

    ``parameters`` are the request fields that are the same in every call. ``price`` is the model's price, or None if
    the price is unknown. Raises ModelError if the provider rejects the key, doesn't offer the model or can't be
    reached.
    """
    await check(client, say)
    task = task_named(run.task)
    prompts = render(task.system, task.user, run.condition)
    calls = (run.options.questions or QUESTIONS) + OTHER_CALLS
    usage = estimate(opening_tokens(parameters, prompts.system + prompts.user), calls)
    say(estimate_text(run.n, usage, price))


async def check(client: ProviderClient, say: Say) -> None:
    """Check the API key and the model's name with the provider, then print the model's retirement date, if any.

    Raises ModelError if the provider rejects the key, doesn't offer the model or can't be reached.
    """
    listed = await _ModelLookup(client, say).find()
    today = datetime.now(UTC).date()
    day = announced(listed) or client.choice.provider.shutdown_of(client.choice.model)
    if day is not None:
        when = f"is announced to be shut down on {day}" if day > today else f"was announced to be shut down on {day}"
        say(f"{client.who} {when}.")


def announced(listed: dict[str, Any]) -> date | None:
    """Return the model's retirement date from ``listed``, or None if ``listed`` contains no valid date.

    ``listed`` is the provider's description of the model, as a JSON object.
    """
    day = listed.get("shutdown_date") or listed.get("retires_at")
    try:
        return datetime.fromisoformat(str(day)).date() if day else None
    except ValueError:
        return None


def estimate(opening: int, calls: int) -> Usage:
    """Estimate the token usage of a typical trial with ``calls`` API calls.

    The first call sends ``opening`` tokens, and each later call sends the whole conversation so far.
    """
    grown = calls * (calls - 1) // 2 * (OUTPUT_TOKENS + ANSWER_TOKENS)
    return Usage(input=calls * opening + grown, output=calls * OUTPUT_TOKENS)


def estimate_text(n: int, usage: Usage, price: Price | None) -> str:
    """Return a sentence with the estimated tokens and cost of ``n`` trials. ``usage`` is the estimate for one trial."""
    cost = price.cost(usage) if price else None
    worth = f"about ${cost * n:,.2f} by prices of {price.date}" if price and cost is not None else "the cost is unknown"
    trials = "1 trial" if n == 1 else f"{n} trials"
    return (
        f"Estimate for {trials}: {usage.input * n:,} input and {usage.output * n:,} output tokens, {worth}; "
        "--max-cost and --max-tokens-total set a limit."
    )


def opening_tokens(parameters: dict[str, Any], prompts: str) -> int:
    """Estimate the tokens of a conversation's first request, from ``prompts`` and the request's parameters."""
    return (len(prompts) + len(json.dumps(parameters))) // BYTES_PER_TOKEN


class _ModelLookup:
    """A lookup of a model at its provider.

    The provider is first asked for the model by name. If it doesn't know the name, it is asked for its list of models.
    """

    def __init__(self, client: ProviderClient, say: Say) -> None:
        self._client, self._say = client, say
        self._path = "/v1/models" if client.choice.provider.api == "messages" else "/models"
        self._provider, self._model = client.choice.provider, client.choice.model

    async def find(self) -> dict[str, Any]:
        """Return the provider's description of the model, or an empty dictionary if the provider gives none.

        Raises ModelError if the provider rejects the key, doesn't offer the model or can't be reached.
        """
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
        """Fetch ``path`` from the provider's API, and return the JSON object in the response.

        Return None if the status is 404 or the response isn't a JSON object. Raises ModelError if the provider rejects
        the API key or can't be reached. For any other error status, print a warning and return an empty dictionary.
        """
        sdk = self._client.sdk
        try:
            response: httpx2.Response = await sdk.client.get(path, cast_to=httpx2.Response)
            body = response.json()
        except sdk.status_error as error:
            refused: httpx2.Response = error.response  # type: ignore[attr-defined] # both SDKs' status errors have one
            if refused.status_code == NOT_FOUND:
                return None
            self._handle_refusal(refused)
            return {}
        except sdk.connection_error as error:
            reason = str(error.__cause__ or error)
            raise ModelError(
                f"{self._provider.name} can't be reached at {self._provider.base_url}: {reason}."
            ) from None
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _handle_refusal(self, response: httpx2.Response) -> None:
        failure = read_failure(response.status_code, response.text)
        if failure.kind is FailureKind.KEY and response.status_code != httpx2.codes.FORBIDDEN:
            raise error_for(failure, self._client.who, self._provider.key, self._client.key, first=True)
        self._say(f"{self._client.who} could not be checked (status {response.status_code}); continuing anyway.")


def _entries(listed: dict[str, Any] | None) -> list[dict[str, Any]]:
    data = (listed or {}).get("data")
    return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
