"""Live models, which are called through a provider's API or served from a local file."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.agents.budget import Budget
from harness.agents.loop import ConversingPlayer
from harness.agents.player import Say
from harness.agents.providers.apis import anthropic_messages, openai_chat, openai_responses
from harness.agents.providers.apis.dialect import Dialect
from harness.agents.providers.limiter import RateLimiter
from harness.agents.providers.local.gguf import NO_TOOLS, PREFIX, ServedModel, gguf_choice, served
from harness.agents.providers.options import ModelOptions
from harness.agents.providers.presets import ModelChoice, Provider, choose
from harness.agents.providers.prices import Price, price_of
from harness.agents.providers.tools import tools_for
from harness.agents.turn import Conversation, Turn
from harness.errors import BudgetError, UsageError
from harness.session.events import Phase
from harness.store.agent_facts import AgentFacts
from harness.store.records import RunSpec
from harness.store.transcript import Entry
from harness.tasks.task import Task
from harness.toolserver.client import ToolClient

if TYPE_CHECKING:
    from harness.agents.providers.client import ProviderClient

DIALECTS = cast(
    "dict[str, Dialect]",
    {"responses": openai_responses, "chat": openai_chat, "messages": anthropic_messages},
)
BYTES_PER_TOKEN = 4
SLACK_S = 60.0  # added to a provider's patience and call limit before the watchdog ends the trial
_BOOKKEEPING = {"price", "sdk"}  # facts of a live model that don't change its answers


_version = cache(version)  # cached, because version() reads a file on each call


@dataclass
class ApiModel(ConversingPlayer):
    """A live model that is called through an API. Trials must run inside a ``with`` block of ``opened``.

    ``file`` is the GGUF file that the lab serves during this block, or None if the model isn't a GGUF file.
    """

    name: str
    choice: ModelChoice
    settings: ModelOptions
    key: str = field(repr=False)
    price: Price | None
    parameters: dict[str, Any]
    budget: Budget = field(default_factory=Budget)
    simulated: str | None = None
    file: Path | None = None
    _served: ServedModel | None = None
    _client: ProviderClient | None = None

    @property
    def dialect(self) -> Dialect:
        """Return the module that builds requests and parses responses for the model's API."""
        return DIALECTS[self.choice.provider.api]

    @property
    def client(self) -> ProviderClient:
        """Return the open provider client. It is available only inside a ``with`` block of ``opened``."""
        assert self._client is not None
        return self._client

    @asynccontextmanager
    async def opened(self, say: Callable[[str], None] = lambda sentence: None) -> AsyncIterator[ProviderClient]:
        """Open the provider client that all trials of a run share, and close it when the ``with`` block ends.

        If the model is a GGUF file, its local server is also started and stopped. ``say`` prints warnings, e.g. about
        retries.
        """
        from harness.agents.providers.client import ProviderClient, open_sdk  # noqa: PLC0415 - loads an HTTP library only this run needs

        limiter = RateLimiter(self.settings.patience_s)
        async with AsyncExitStack() as stack:
            if self.file:
                self._use_server(await stack.enter_async_context(served(self.file, self.choice.model)), say)
            opening = open_sdk(self.choice, self.key, limiter, self.settings.call_limit_s)
            sdk = await stack.enter_async_context(opening)
            self._client = ProviderClient(self.choice, sdk, limiter, self.key, self.settings.patience_s, say)
            yield self._client

    def _use_server(self, server: ServedModel, say: Callable[[str], None]) -> None:
        """Send all further requests to a local server.

        If the server's model doesn't support tools, print a warning and mark the model as simulated. Trials of a
        simulated model don't count as findings.
        """
        provider = self.choice.provider.model_copy(update={"base_url": server.url})
        self.choice, self.key, self._served = (
            ModelChoice(provider=provider, model=self.choice.model),
            server.key,
            server,
        )
        if not server.tools and "tools" in self.parameters:
            self.simulated = NO_TOOLS
            say(f"The chat template in {self.file} has no place for tools: this is {NO_TOOLS}.")

    def facts(self, trial: int) -> AgentFacts:
        """Return facts about the model for a trial record, such as its provider, SDK, request parameters and price."""
        provider = self.choice.provider
        sdk = "anthropic" if provider.api == "messages" else "openai"
        facts = AgentFacts(
            provider=provider.name,
            model=self.choice.model,
            api=provider.api,
            base_url=provider.base_url,
            sdk=f"{sdk} {_version(sdk)}",
            parameters=self.parameters,
            price=self.price.model_dump() if self.price else None,
        )
        return facts.with_facts(self._served.facts) if self._served else facts

    def identity(self) -> dict[str, Any]:
        """Return the facts about the model that could change its answers, as JSON values."""
        return {name: value for name, value in self.facts(1).as_json().items() if name not in _BOOKKEEPING}

    def phase_limits(self, limits: Mapping[Phase, float | None]) -> Mapping[Phase, float | None]:
        """Return a copy of ``limits`` with a longer limit for the model, which leaves enough time for all retries."""
        return {**limits, Phase.MODEL: self.settings.patience_s + self.settings.call_limit_s + SLACK_S}

    @asynccontextmanager
    async def connected(self, run: RunSpec, say: Say) -> AsyncIterator[None]:
        """Keep the model connected to its provider while the ``with`` block runs.

        The API key and the model's name are checked first, unless the user switched this check off. Raises ModelError
        if the check fails.
        """
        from harness.agents.providers.preflight import preflight  # noqa: PLC0415 - loads an HTTP library only a live run needs

        async with self.opened(say) as client:
            if self.settings.preflight:
                await preflight(client, self.parameters, self.price, run, say)
            yield

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Return a new conversation with the model. The arguments are ignored."""
        return _Conversation(self)

    def afterwards(self, trial: int) -> Conversation:
        """Return a new conversation with the model for the interview after the trial.

        The model knows about the trial only from the transcript that each request contains.
        """
        return _Conversation(self)


@dataclass(frozen=True)
class _Conversation:
    model: ApiModel

    async def next(self, transcript: Sequence[Entry]) -> Turn | None:
        model, dialect = self.model, self.model.dialect
        if spent := model.budget.spent():
            raise BudgetError(f"The run was stopped because {spent}.")
        body = {**model.parameters, **dialect.conversation(transcript)}
        first = not any(entry.role == "assistant" for entry in transcript)
        turn = await model.client.ask(dialect.PATH, body, dialect.read, first=first)
        if turn.usage and model.price:
            turn = turn.model_copy(update={"cost": model.price.cost(turn.usage)})
        model.budget.add(turn, 0 if turn.usage else len(str(body)) // BYTES_PER_TOKEN)
        return turn


def _refuse_foreign_headers(provider: Provider) -> None:
    """Raise UsageError if the SDK would send custom headers for OpenAI or Anthropic to another provider.

    The SDK reads custom headers from an environment variable and adds them to every request.
    """
    owner, variable = (
        ("anthropic", "ANTHROPIC_CUSTOM_HEADERS") if provider.api == "messages" else ("openai", "OPENAI_CUSTOM_HEADERS")
    )
    if provider.name != owner and os.environ.get(variable):
        raise UsageError(f"Unset {variable}: its headers would be sent to {provider.name} too.")


def _choice(name: str, file: Path | None, options: ModelOptions) -> ModelChoice:
    if file is None:
        return choose(name, options.base_url, options.api)
    if options.base_url or options.api:
        raise UsageError("--base-url and --api can't be set for a GGUF file, because the lab serves the file itself.")
    return gguf_choice(file)


def api_model(name: str, task: Task | None, options: ModelOptions) -> ApiModel:
    """Build the live model for a --model name. If ``task`` is None, the model gets no tools.

    Raises UsageError if the model is unknown, its API key is missing, or an option can't be used with this model.
    """
    options.must_make_sense()
    file = Path(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    choice = _choice(name, file, options)
    dialect, sampling = DIALECTS[choice.provider.api], options.sampling
    if sampling.effort is not None and sampling.effort not in dialect.EFFORTS:
        raise UsageError(
            f"This API doesn't support --reasoning-effort '{sampling.effort}': choose {', '.join(dialect.EFFORTS)}."
        )
    if sampling.temperature is not None and choice.provider.api == "messages":
        raise UsageError("--temperature can't be set for this API: Anthropic's SDK has no such parameter for messages.")
    _refuse_foreign_headers(choice.provider)
    key = choice.provider.secret()
    price = price_of(choice.provider.name, choice.model, options.prices)
    if options.max_cost is not None and price is None:
        raise UsageError(
            f"--max-cost can't be enforced: no price is known for {choice.provider.name}/{choice.model}. "
            "Give one with --prices FILE, or set --max-tokens-total."
        )
    return ApiModel(
        name=name,
        choice=choice,
        settings=options,
        key=key,
        price=price,
        parameters=dialect.parameters(choice, sampling, tools_for(task.tool) if task else ()),
        budget=Budget(options.max_cost, options.max_tokens_total),
        file=file,
    )
