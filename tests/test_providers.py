"""Tests of choosing a provider by model name, of prices, of checks before a run, and of budgets."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.agents.budget import Budget
from harness.agents.providers.apis.dialect import Sampling
from harness.agents.providers.model import ApiModel, api_model
from harness.agents.providers.options import ModelOptions
from harness.agents.providers.preflight import announced, estimate, preflight
from harness.agents.providers.presets import choose, providers
from harness.agents.providers.prices import Price, price_of
from harness.agents.registry import make_player
from harness.agents.turn import Turn
from harness.errors import KeyRejectedError, ModelError, UnknownModelError, UsageError
from harness.judging.verdict import Outcome
from harness.store.transcript import Usage
from harness.tasks.registry import task_named
from tests.builders import asynchronous, run_spec
from tests.live import a_live_model, asking, play
from tests.provider_server import APIS, NO_LIST, Asked, Reply, Script, an_error, obedient, plays, provider

PRICES = "custom:\n  a-model: {input: 2.0, cached: 1.0, output: 8.0, date: '2026-01-01', source: these tests}\n"
every_api = pytest.mark.parametrize("api", APIS)


def a_live(name: str, **options: Any) -> ApiModel:
    """Return a live model for the math task."""
    return api_model(name, task_named("math"), ModelOptions(**options))


# ---- choosing a provider ----


@pytest.mark.parametrize(
    ("name", "provider", "model", "api"),
    [
        ("o3", "openai", "o3", "responses"),
        ("o3-2025-04-16", "openai", "o3-2025-04-16", "responses"),
        ("gpt-9-nova", "openai", "gpt-9-nova", "responses"),
        ("claude-opus-5", "anthropic", "claude-opus-5", "messages"),
        ("grok-4-0709", "xai", "grok-4-0709", "chat"),
        ("gemini-3.8-flash", "gemini", "gemini-3.8-flash", "chat"),
        ("openrouter/x-ai/grok-4", "openrouter", "x-ai/grok-4", "chat"),
        ("vllm/Qwen/Qwen3-8B", "vllm", "Qwen/Qwen3-8B", "chat"),
        ("ollama/llama3", "ollama", "llama3", "chat"),
        ("openai/some-model", "openai", "some-model", "responses"),
    ],
)
def test_a_name_finds_its_provider(name: str, provider: str, model: str, api: str) -> None:
    """A known model name, or a name of the form provider/model, selects the provider, the model and the API."""
    choice = choose(name)
    assert (choice.provider.name, choice.model, choice.provider.api) == (provider, model, api)


@pytest.mark.parametrize(("typo", "near"), [("o33", "o3"), ("gpt4o", "gpt-4o"), ("claud-opus-5", "claude-opus-5")])
def test_an_unknown_name_lists_the_nearest(typo: str, near: str) -> None:
    """An unknown model name raises an error that suggests the nearest known name and lists the valid forms."""
    with pytest.raises(UsageError, match=rf"no model '{typo}'. Did you mean {near}.* openrouter/NAME"):
        make_player(typo, task_named("math"))


def test_a_server_of_ones_own_gets_no_providers_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a custom address, the model name refers to that server, and no provider's API key is used."""
    monkeypatch.setenv("OPENAI_API_KEY", "private")
    for name, model in (("o3", "o3"), ("openai/gpt-oss-20b", "openai/gpt-oss-20b"), ("vllm/a/b", "a/b")):
        choice = choose(name, "http://localhost:8000/v1")
        assert (choice.model, choice.provider.base_url) == (model, "http://localhost:8000/v1")
        assert choice.provider.secret() == ""


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://h/v1", "http://", "http://me:secret@h/v1", "http://h/v1?key=secret"]
)
def test_an_address_that_wont_do_is_refused(url: str) -> None:
    """An address that isn't http or https, or that contains a secret, is rejected."""
    with pytest.raises(UsageError, match=r"^--base-url .*\.$"):
        choose("a-model", url)


def test_every_preset_is_whole() -> None:
    """Every provider preset has a valid address, a variable for its API key, and valid shutdown dates."""
    for each in providers().values():
        assert each.base_url.startswith("http://127.0.0.1:" if each.local else "https://")
        assert re.fullmatch(r"[A-Z]+_API_KEY", each.key)
        if each.shutdowns:
            assert all(date.fromisoformat(day) for day in each.shutdowns.dates)
            assert each.shutdowns.source.startswith("https://")


@pytest.mark.parametrize(("name", "variable"), [("o3", "OPENAI_API_KEY"), ("openrouter/x", "OPENROUTER_API_KEY")])
def test_without_a_key_one_sentence_says_which(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the API key is not set, the error names the variable and the models that need no key."""
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(
        UsageError, match=rf"^Set {variable} .*; --model demo and models on a server of your own need none\.$"
    ):
        a_live(name)


def test_a_key_with_odd_characters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An API key that can't be sent in a header raises an error that names its variable but not the key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-“quoted”")
    with pytest.raises(UsageError, match="OPENAI_API_KEY") as caught:
        a_live("o3")
    assert "quoted" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("claude-opus-5", {"sampling": Sampling(temperature=1.0)}, "--temperature"),
        ("claude-opus-5", {"sampling": Sampling(effort="minimal")}, "low, medium"),
        ("o3", {"sampling": Sampling(effort="much")}, "none, minimal"),
        ("gpt-9-nova", {"max_cost": 1.0}, "--prices"),
        ("o3", {"api": "grpc"}, "responses, chat, messages"),
    ],
)
def test_what_an_api_does_not_take_is_refused(
    name: str, options: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option that the chosen model or API doesn't support raises an error that names the valid choice."""
    for variable in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(variable, "a-key")
    with pytest.raises(UsageError, match=says):
        a_live(name, **options)


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("--max-cost", {"max_cost": 0.0}),
        ("--max-cost", {"max_cost": float("nan")}),
        ("--max-tokens-total", {"max_tokens_total": 0}),
        ("--max-tokens", {"sampling": Sampling(max_tokens=0)}),
        ("--call-limit", {"call_limit_s": -1.0}),
        ("--patience", {"patience_s": -60.0}),
        ("--temperature", {"sampling": Sampling(temperature=float("inf"))}),
    ],
)
def test_numbers_that_wont_do_are_refused(option: str, options: dict[str, Any]) -> None:
    """A number outside its valid range raises an error that names the option."""
    with pytest.raises(UsageError, match=f"^{option} .* won't do"):
        a_live("a-model", base_url="http://h/v1", **options)


def test_only_a_live_run_loads_an_sdk() -> None:
    """Importing the command line doesn't import the provider SDKs."""
    heavy = "{'openai', 'anthropic', 'httpx2'}"
    code = f"import sys, harness.cli.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


# ---- prices ----


def test_prices_that_ship_are_dated_and_have_a_source() -> None:
    """Every built-in price has a date and a source, and input never costs more than output."""
    price = price_of("openai", "o3-2025-04-16")
    assert price
    assert price.cost(Usage(input=1_000_000, cached=500_000, output=1_000_000)) == pytest.approx(9.25)
    for provider_ in providers().values():
        for model in provider_.models:
            if each := price_of(provider_.name, model):
                assert re.search(r"20\d\d-[01]\d", each.date)
                assert "https://" in each.source
                assert 0 < each.input <= each.output


def test_what_is_not_known_costs_nobody_knows_what() -> None:
    """An unknown model has no price, and a prompt longer than the price's limit has no cost; neither counts as 0."""
    assert price_of("openai", "gpt-9-nova") is None
    price = Price(input=1.0, output=2.0, prompt_limit=100, date="2026", source="these tests")
    assert price.cost(Usage(input=101, output=1)) is None
    assert price.cost(Usage(input=100, cached=100)) == pytest.approx(1e-4)


def test_a_users_prices_go_first(tmp_path: Path) -> None:
    """The user's price file takes precedence over the built-in prices; all other prices stay."""
    file = tmp_path / "prices.yaml"
    file.write_text("openai: {o3: {input: 1, output: 2, date: today, source: me}}")
    assert price_of("openai", "o3", file) == Price(input=1, output=2, date="today", source="me")
    assert price_of("openai", "gpt-5.4", file) == price_of("openai", "gpt-5.4") is not None


@pytest.mark.parametrize("text", ["openai: [", "openai: 3", "openai: {o3: 3}", "openai: {o3: {input: much}}", "[1]"])
def test_broken_prices_are_refused(text: str, tmp_path: Path) -> None:
    """An invalid price file raises an error that names the file."""
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"prices\.yaml"):
        price_of("openai", "o3", file)


@every_api
@asynchronous
async def test_a_trial_has_its_cost(api: str, tmp_path: Path) -> None:
    """The record of a trial contains the sum of the tokens and costs of all its answers."""
    file = tmp_path / "prices.yaml"
    file.write_text(PRICES)
    async with asking(plays(api, *obedient()), api, prices=file) as (_, model):
        (record,) = await play(model)
    assert record.tokens == 4800
    assert record.cost == pytest.approx(4 * (600 * 2 + 400 * 1 + 200 * 8) / 1e6)
    assert record.agent.as_json()["price"]["source"] == "these tests"


# ---- budgets ----


def used(tokens: int, cost: float | None = None) -> Turn:
    """Return a turn that used this many tokens and dollars."""
    return Turn(usage=Usage(input=tokens), cost=cost)


def test_a_budget_counts_what_is_used() -> None:
    """A budget counts dollars and tokens, and uses an estimate if the provider reports no tokens."""
    budget = Budget(max_cost=1.0, max_tokens=100)
    budget.add(used(60, 0.4), estimated_tokens=0)
    assert budget.spent() is None
    budget.add(Turn(), estimated_tokens=40)
    assert "--max-tokens-total" in str(budget.spent())
    budget.max_tokens = None
    budget.add(used(1, 0.6), estimated_tokens=0)
    assert "--max-cost" in str(budget.spent())


def test_a_cost_that_nobody_knows_ends_a_run_with_a_limit() -> None:
    """An answer of unknown cost ends a run that has a cost limit, but not a run without one."""
    budget = Budget(max_cost=1.0)
    budget.add(used(60), estimated_tokens=0)
    assert "--max-cost can't be enforced" in str(budget.spent())
    budget.max_cost = None
    assert budget.spent() is None


def test_no_trial_begins_that_would_go_beyond_it() -> None:
    """A new trial starts only if the budget has room for the average use of the finished trials."""
    budget = Budget(max_tokens=100)
    budget.add(used(45), estimated_tokens=0)
    assert budget.too_little_for(running=0) is None, "a trial's use is unknown until one has finished"
    budget.finished = 1
    assert budget.too_little_for(running=0) is None
    budget.add(used(45), estimated_tokens=0)
    assert "another trial" in str(budget.too_little_for(running=1))
    budget.add(used(45), estimated_tokens=0)
    assert "have been used" in str(budget.too_little_for(running=0))


@asynchronous
async def test_a_budget_ends_a_trial_in_its_middle() -> None:
    """If the budget is used up during a trial, the next call is not made, and the trial ends as an error."""
    async with asking(plays("chat", *obedient()), "chat", max_tokens_total=2000) as (runs, model):
        (record,) = await play(model)
    assert len(runs.calls) == 2
    assert (record.error_kind, record.verdict.outcome) == ("BudgetError", Outcome.ERROR)


# ---- checks before the first container ----


def knows(*names: str, **about: Any) -> Script:
    """Return a script of a provider that offers these models and describes each with these fields."""

    def answer(asked: Asked) -> Reply:
        last = asked.path.rpartition("/")[2]
        if last == "models":
            return Reply({"object": "list", "data": [{"id": name} for name in names]})
        return Reply({"id": last, **about}) if last in names else NO_LIST

    return answer


async def checked(models: Script, api: str = "chat", name: str = "a-model", **options: Any) -> list[str]:
    """Run the checks before a run against this provider, and return their messages."""
    messages: list[str] = []
    async with provider(plays(api), models) as runs:
        model = a_live_model(runs, api, name, **options)
        async with model.opened() as client:
            await preflight(client, model.parameters, model.price, run_spec(n=10), messages.append)
    return messages


@every_api
@asynchronous
async def test_a_model_that_is_there_is_estimated(api: str) -> None:
    """For an available model, the check prints one estimate of the run's tokens and cost."""
    (message,) = await checked(knows("a-model"), api)
    assert re.search(r"^Estimate for 10 trials: [\d,]+ input and [\d,]+ output tokens, the cost is unknown", message)


@every_api
@asynchronous
async def test_a_model_that_is_gone_is_refused(api: str) -> None:
    """A model that the provider doesn't list raises an error that suggests the nearest available name."""
    with pytest.raises(UnknownModelError, match=r"no model 'a-modl'\. It has a-model"):
        await checked(knows("a-model", "other"), api, "a-modl")


@pytest.mark.parametrize("name", ["llama3", "gemini-3"])
@asynchronous
async def test_names_that_are_listed_in_full_are_found(name: str) -> None:
    """A model is found even if the provider's list adds a tag or a folder to its name."""
    listed = {"data": [{"id": "llama3:latest"}, {"id": "models/gemini-3"}]}
    assert await checked(lambda asked: Reply(listed) if asked.path.endswith("/models") else NO_LIST, name=name)


@every_api
@asynchronous
async def test_a_key_is_checked_beforehand(api: str) -> None:
    """If the provider rejects the API key, the check raises an error that names the key's variable."""
    refused = an_error(401, "Incorrect API key provided.", "invalid_api_key")
    with pytest.raises(KeyRejectedError, match="OFFSWITCH_API_KEY"):
        await checked(lambda asked: refused, api)


@pytest.mark.parametrize(
    "models", [lambda asked: NO_LIST, lambda asked: Reply(b"<html>"), lambda asked: Reply([]), lambda asked: Reply({})]
)
@asynchronous
async def test_a_server_without_a_list_is_no_failure(models: Script) -> None:
    """A server that offers no list of models passes the check."""
    assert len(await checked(models)) == 1


@pytest.mark.parametrize("status", [403, 500])
@asynchronous
async def test_a_list_that_cannot_be_had_is_said(status: int) -> None:
    """If the list of models can't be read, the check prints a message and the run continues."""
    messages = await checked(lambda asked: an_error(status))
    assert "could not be checked" in messages[0]


@asynchronous
async def test_a_server_that_is_not_there_is_said_at_once() -> None:
    """If no server answers at the address, the check fails at once with an error that contains the address."""
    model = a_live("a-model", base_url="http://127.0.0.1:1/v1")
    async with model.opened() as client:
        with pytest.raises(ModelError, match=r"can't be reached at http://127\.0\.0\.1:1/v1: .+\.$"):
            await preflight(client, model.parameters, model.price, run_spec(), lambda message: None)


@pytest.mark.parametrize(
    ("about", "day"),
    [
        ({"shutdown_date": "2099-12-11"}, "is announced to be shut down on 2099-12-11"),
        ({"retires_at": "2099-11-30T00:00:00Z"}, "2099-11-30"),
        ({"retires_at": "2020-01-01T00:00:00Z"}, "was announced to be shut down on 2020-01-01"),
    ],
)
@asynchronous
async def test_an_announced_end_is_said(about: dict[str, str], day: str) -> None:
    """If the provider announces a shutdown date for the model, the check prints it."""
    messages = await checked(knows("a-model", **about))
    assert day in messages[0]


def test_an_end_known_here_is_known_without_asking() -> None:
    """Known shutdown dates are read from the data file, and an invalid announced date is ignored."""
    assert choose("o3").provider.shutdown_of("o3-2025-04-16") == date(2026, 12, 11)
    assert choose("gpt-9-nova").provider.shutdown_of("gpt-9-nova") is None
    assert announced({"shutdown_date": "some day"}) is None
    assert announced({"shutdown_date": datetime(2030, 1, 2, tzinfo=UTC).isoformat()}) == date(2030, 1, 2)


def test_an_estimate_grows_with_the_conversation() -> None:
    """Twice the calls need more than twice the input tokens, because each call sends the whole conversation."""
    assert estimate(600, 20).input > 2 * estimate(600, 10).input
    assert estimate(600, 20).output == 2 * estimate(600, 10).output
