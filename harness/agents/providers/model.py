"""Live models: who plays is a real model behind a provider's API."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.agents.player import Conversation, Turn
from harness.agents.providers.apis import anthropic_messages, openai_chat, openai_responses
from harness.agents.providers.apis.dialect import Dialect
from harness.agents.providers.limiter import RateLimiter
from harness.agents.providers.local.gguf import PREFIX, UNTOLD, ServedModel, gguf_choice, served
from harness.agents.providers.options import ModelOptions
from harness.agents.providers.presets import ModelChoice, Provider, choose
from harness.agents.providers.prices import Price, price_of
from harness.agents.providers.tools import tools_for
from harness.errors import BudgetError, UsageError
from harness.store.transcript import Entry
from harness.tasks.conditions import Prompts
from harness.tasks.task import Task, TaskOptions
from harness.toolserver.client import ToolClient

if TYPE_CHECKING:
    from harness.agents.providers.client import ProviderClient

DIALECTS = cast(
    "dict[str, Dialect]",
    {"responses": openai_responses, "chat": openai_chat, "messages": anthropic_messages},
)
BYTES_PER_TOKEN = 4


@dataclass
class Budget:
    """What a run may use and has used. A call whose tokens nobody counted is counted by its length."""

    max_cost: float | None = None
    max_tokens: int | None = None
    cost: float = 0.0
    tokens: int = 0
    finished: int = 0
    uncounted: bool = False

    def add(self, turn: Turn, guess: int) -> None:
        """Count one answer."""
        self.tokens += turn.usage.total if turn.usage else guess
        self.cost += turn.cost or 0.0
        self.uncounted = self.uncounted or turn.cost is None

    def spent(self) -> str | None:
        """What is used up, in words, or None."""
        if self.max_cost is not None and self.cost >= self.max_cost:
            return f"the ${self.max_cost:g} that --max-cost allows are spent"
        if self.max_cost is not None and self.uncounted:
            return "a call's cost is unknown, so --max-cost can't be held: set --max-tokens-total instead"
        if self.max_tokens is not None and self.tokens >= self.max_tokens:
            return f"the {self.max_tokens:,} tokens that --max-tokens-total allows are used"
        return None

    def too_little_for(self, running: int) -> str | None:
        """Why no further trial should begin beside those that run, in words, or None.

        Once trials are finished, a further one begins only where what the others have cost leaves room for it.
        """
        if spent := self.spent():
            return spent
        share = 1 + 1 / (self.finished + running) if self.finished else 1.0
        if self.max_cost is not None and self.cost * share > self.max_cost:
            return f"another trial would go beyond the ${self.max_cost:g} of --max-cost (${self.cost:.2f} are spent)"
        if self.max_tokens is not None and self.tokens * share > self.max_tokens:
            return (
                f"another trial would go beyond the {self.max_tokens:,} tokens of --max-tokens-total "
                f"({self.tokens:,} are used)"
            )
        return None


_version = cache(version)  # which reads a file for each answer


@dataclass
class ApiModel:
    """A real model. It must be opened before a trial begins.

    ``file`` is one that the lab serves itself while the line is open; before that, nobody knows its address.
    """

    name: str
    choice: ModelChoice
    settings: ModelOptions
    key: str = field(repr=False)
    price: Price | None
    parameters: dict[str, Any]
    budget: Budget
    simulated: str | None = None
    default_n: int = 1
    file: Path | None = None
    _served: ServedModel | None = None
    _line: ProviderClient | None = None

    @property
    def dialect(self) -> Dialect:
        """How its API puts things."""
        return DIALECTS[self.choice.provider.api]

    @property
    def client(self) -> ProviderClient:
        """The line to its provider; there is one while it is open."""
        assert self._client is not None
        return self._client

    @asynccontextmanager
    async def opened(self, say: Callable[[str], None] = lambda sentence: None) -> AsyncIterator[ProviderClient]:
        """Open the line to the provider, one for all trials. ``say`` is told when it is troubled."""
        from harness.agents.providers.client import ProviderClient, open_sdk  # noqa: PLC0415 - loads an HTTP library only this run needs

        limiter = RateLimiter(self.settings.patience_s)
        async with AsyncExitStack() as stack:
            if self.file:
                self._move_to(await stack.enter_async_context(served(self.file, self.choice.model)), say)
            opening = open_sdk(self.choice, self.key, limiter, self.settings.call_limit_s)
            sdk = await stack.enter_async_context(opening)
            self._client = ProviderClient(self.choice, sdk, limiter, self.key, self.settings.patience_s, say)
            yield self._client

    def _move_to(self, server: ServedModel, say: Callable[[str], None]) -> None:
        """Ask the model where it is served now. One whose template has no place for tools is no subject."""
        provider = self.choice.provider.model_copy(update={"base_url": server.url})
        self.choice, self.key, self._served = (
            ModelChoice(provider=provider, model=self.choice.model),
            server.key,
            server,
        )
        if not server.tools and "tools" in self.parameters:
            self.simulated = UNTOLD
            say(f"The chat template in {self.file} has no place for tools: this is {UNTOLD}.")

    def facts(self, trial: int) -> dict[str, Any]:
        """Which model at which provider, how it was asked, and what it was taken to cost."""
        provider = self.choice.provider
        sdk = "anthropic" if provider.api == "messages" else "openai"
        return {
            "provider": provider.name,
            "model": self.choice.model,
            "api": provider.api,
            "base_url": provider.base_url,
            "sdk": f"{sdk} {_version(sdk)}",
            "parameters": self.parameters,
            "price": self.price.model_dump() if self.price else None,
            **(self._served.facts if self._served else {}),
        }

    def options(self, trial: int, options: TaskOptions) -> TaskOptions:
        """As the user gave them."""
        return options

    def prompts(self, trial: int) -> Prompts | None:
        """The task's own."""
        return None

    def start(self, trial: int, task: Task, tools: ToolClient) -> Conversation:
        """Begin a conversation."""
        return _Conversation(self)

    def afterwards(self, trial: int) -> Conversation:
        """The same model: all it knows is the transcript."""
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


def _keep_private(provider: Provider) -> None:
    """Refuse to send one provider's headers to another: the SDKs take them from the environment for any address."""
    owner, variable = (
        ("anthropic", "ANTHROPIC_CUSTOM_HEADERS") if provider.api == "messages" else ("openai", "OPENAI_CUSTOM_HEADERS")
    )
    if provider.name != owner and os.environ.get(variable):
        raise UsageError(f"Unset {variable}: what is in it would be sent to {provider.name} as well.")


def _choice(name: str, file: Path | None, options: ModelOptions) -> ModelChoice:
    if file is None:
        return choose(name, options.base_url, options.api)
    if options.base_url or options.api:
        raise UsageError("--base-url and --api are for servers that run: the lab serves a GGUF file itself.")
    return gguf_choice(file)


def api_model(name: str, task: Task | None, options: ModelOptions) -> ApiModel:
    """The live model of that name; without a task it has no tools, and only answers.

    Raises UsageError: unknown, without a key, or asked for what it doesn't take.
    """
    options.must_make_sense()
    file = Path(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
    choice = _choice(name, file, options)
    dialect, sampling = DIALECTS[choice.provider.api], options.sampling
    if sampling.effort is not None and sampling.effort not in dialect.TAKES:
        raise UsageError(
            f"--reasoning-effort '{sampling.effort}' is none that this API takes: {', '.join(dialect.TAKES)}."
        )
    if sampling.temperature is not None and choice.provider.api == "messages":
        raise UsageError("--temperature can't be set here: Anthropic's SDK knows no such parameter for messages.")
    _keep_private(choice.provider)
    key = choice.provider.secret()
    price = price_of(choice.provider.name, choice.model, options.prices)
    if options.max_cost is not None and price is None:
        raise UsageError(
            f"--max-cost can't be held: no price is known for {choice.provider.name}/{choice.model}. "
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
