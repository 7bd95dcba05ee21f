"""Reads provider presets from presets.yaml, and finds the provider and the model for a --model name."""

from __future__ import annotations

import functools
import os
import re
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from harness.errors import UsageError
from harness.judging.evidence import Frozen
from harness.resources.data import read_yaml
from harness.resources.strict_yaml import documents, model_of, pairs_of, refusal

ApiName = Literal["responses", "chat", "messages"]
APIS: tuple[ApiName, ...] = ("responses", "chat", "messages")
CUSTOM_KEY = "OFFSWITCH_API_KEY"
_MAX_TOKENS = {"responses": "max_output_tokens", "chat": "max_tokens", "messages": "max_tokens"}
_DATED = re.compile(r"-\d{4}-?\d\d-?\d\d$")


class UnknownModelNameError(UsageError):
    """Raised for a --model name that matches no provider preset."""


class Shutdowns(Frozen):
    """The dates on which a provider retires models.

    ``dates`` maps each date to the names of the models that are retired on that date. ``source`` is the publication
    that lists the dates. ``read`` is the day on which this publication was read.
    """

    source: str
    read: str
    dates: dict[str, tuple[str, ...]]


class Provider(Frozen):
    """A provider of models, with its API, its URL and its models.

    ``key`` is the name of the environment variable that contains the API key. ``max_tokens`` is the name of the request
    field that limits the output. ``local`` is true if no API key is required, e.g. for a local server. ``families`` are
    prefixes of the provider's model names. ``unreasoning`` are patterns for the names of models that reject a request
    for encrypted reasoning.
    """

    name: str
    api: ApiName
    base_url: str
    key: str
    max_tokens: str
    local: bool = False
    families: tuple[str, ...] = ()
    unreasoning: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    shutdowns: Shutdowns | None = None

    def has(self, model: str) -> bool:
        """Return whether the provider's preset includes ``model``.

        The preset contains model names and prefixes of model names. A date at the end of ``model`` is ignored.
        """
        return model.startswith(self.families) or _DATED.sub("", model) in self.models

    def shutdown_of(self, model: str) -> date | None:
        """Return the date on which the provider retires ``model``, or None if no date is known."""
        dates = self.shutdowns.dates if self.shutdowns else {}
        return next((date.fromisoformat(day) for day, models in dates.items() if model in models), None)

    def secret(self) -> str:
        """Return the API key from the environment, or an empty string if the key is neither set nor required.

        Raises UsageError if a required key isn't set, or if the key contains invalid characters.
        """
        found = os.environ.get(self.key, "").strip()
        if not found and not self.local:
            raise UsageError(
                f"Set {self.key} to a key for {self.name}; --model demo and models on a server of your own need none."
            )
        if not (found.isascii() and found.isprintable()):
            raise UsageError(f"{self.key} holds characters that no API key contains: set it again.")
        return found


class ModelChoice(Frozen):
    """A model and its provider. ``model`` is the model's name in the provider's API."""

    provider: Provider
    model: str


@functools.cache
def _shipped() -> dict[str, Provider]:
    entries = read_yaml(Path(__file__).with_name("presets.yaml"))
    return {name: Provider(name=name, **entry) for name, entry in entries.items()}


_files: list[Path] = []
_own: dict[str, Provider] = {}


def providers() -> dict[str, Provider]:
    """Return all provider presets by name: the shipped ones, and those of the user's files."""
    return {**_shipped(), **_own}


def use_file(file: Path) -> None:
    """Add the provider presets of a YAML file. The file has the keys of presets.yaml, except ``shutdowns``.

    Raises UsageError with the faulty line if the file is invalid, or if there already is a provider with the same name.
    """
    if file.absolute() in _files:
        return
    for name, node in pairs_of(next(documents(file, "a provider")), "providers"):
        if name in providers():
            raise refusal(node, f"there is already a provider '{name}', so give it another name")
        _own[name] = model_of(Provider, node, "provider", name=name, shutdowns=None)
    _files.append(file.absolute())


def files() -> tuple[Path, ...]:
    """Return the user's files of provider presets, as absolute paths."""
    return tuple(_files)


def choose(name: str, base_url: str | None = None, api: str | None = None) -> ModelChoice:
    """Return the provider and the model for the --model option ``name``.

    If ``base_url`` is given, the model is called at that URL, and no API key of a hosted provider is sent there. In
    this case, ``name`` is the model's name at that URL. A local server's prefix, such as ``vllm/``, is removed from
    ``name``. If ``api`` is given, it replaces the API in the provider's preset. Raises UsageError if ``name`` or an
    option is invalid.
    """
    if api is not None and api not in APIS:
        raise UsageError(f"There is no API '{api}': --api is {', '.join(APIS)}.")
    first, slash, rest = name.partition("/")
    preset = providers().get(first) if slash and rest else None
    if base_url is not None:
        local = preset if preset and preset.local else None
        return ModelChoice(provider=_custom_provider(base_url, api, local), model=rest if local else name)
    if preset:
        return ModelChoice(provider=_with_api(preset, api), model=rest)
    found = next((each for each in providers().values() if each.has(name)), None)
    if found is None:
        raise UnknownModelNameError(f"There is no model '{name}'.")
    return ModelChoice(provider=_with_api(found, api), model=name)


def _custom_provider(base_url: str, api: str | None, local: Provider | None) -> Provider:
    if set(base_url) & set("@?#"):  # the message doesn't quote the address, because it may hold a key
        raise UsageError(f"--base-url must hold no key and no question mark: put the key into {CUSTOM_KEY}.")
    url = urlsplit(base_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"--base-url {base_url} isn't an http address: write http://HOST:PORT/v1.")
    if local:
        return _with_api(local.model_copy(update={"base_url": base_url}), api)
    field = _MAX_TOKENS["chat"]
    chat = Provider(name="custom", api="chat", base_url=base_url, key=CUSTOM_KEY, local=True, max_tokens=field)
    return _with_api(chat, api)


def _with_api(provider: Provider, api: str | None) -> Provider:
    if api is None or api == provider.api:
        return provider
    return Provider(**{**provider.model_dump(), "api": api, "max_tokens": _MAX_TOKENS[api]})
