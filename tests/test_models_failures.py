"""When a provider fails: what is tried again, what ends a trial, what ends a run, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from harness.agents.providers.client import backoff_s
from harness.agents.providers.failures import Failure, FailureKind, read_failure, redacted
from harness.agents.providers.model import api_model
from harness.agents.providers.options import ModelOptions
from harness.errors import (
    ContextOverflowError,
    KeyRejectedError,
    ModelError,
    ProviderDownError,
    QuotaError,
    RequestRejectedError,
    TurnRejectedError,
    UnansweredError,
    UnknownModelError,
    UsageError,
)
from harness.judging.evidence import StopReason
from harness.judging.verdict import Outcome, judge
from harness.runs.queue import LASTING
from harness.store.transcript import Entry
from harness.tasks.registry import task_named
from tests.builders import DUE, NOTICE, OUTLIVED, SERVED, UP, an_evidence, asynchronous
from tests.live import OPENING, asking, next_turn, play
from tests.provider_server import (
    APIS,
    AT_ONCE,
    NO_LIST,
    Asked,
    Reply,
    Says,
    Script,
    an_error,
    chat,
    in_turn,
    obedient,
    plays,
    submit_call,
    troubled,
)

every_api = pytest.mark.parametrize("api", APIS)
KEY = "sk-planted-0123456789abcdef"
OVERLONG = "This model's maximum context length is 128000 tokens. However, your messages resulted in 130000 tokens."


def then(api: str, *troubles: Reply) -> Script:
    """These troubles, and then an answer."""
    return in_turn(*troubles, Reply(APIS[api](Says(text="Here I am."))))


# ---- what is tried again ----


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(an_error(429, "Rate limit reached."), id="429"),
        pytest.param(an_error(500), id="500"),
        pytest.param(an_error(529, "Overloaded"), id="529"),
        pytest.param(Reply(b"<html>Bad gateway</html>", 502, AT_ONCE), id="html"),
    ],
)
@every_api
@asynchronous
async def test_what_passes_is_tried_again_and_counted(api: str, trouble: Reply) -> None:
    """After four failures of a passing kind there is an answer, and four retries are counted."""
    async with asking(then(api, *[trouble] * 4), api) as (runs, model):
        turn = await next_turn(model)
    assert (turn.text, turn.retries) == ("Here I am.", 4)
    assert len(runs.calls) == 5
    assert len({str(call.body) for call in runs.calls}) == 1, "the same is asked again"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b'{"choices": [', id="cut"),
        pytest.param(b"", id="empty"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"output": [1], "choices": [], "content": 3}', id="other things in it"),
        pytest.param(b"<html>Hello</html>", id="html"),
        pytest.param(b'{"output": NaN, "content": NaN, "choices": NaN}', id="no number"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
@every_api
@asynchronous
async def test_an_answer_that_is_none_is_tried_again(api: str, content: bytes) -> None:
    """An answer with status 200 that isn't one of this API's is a failure of the provider's, and passes."""
    async with asking(then(api, Reply(content, headers=AT_ONCE)), api) as (_, model):
        turn = await next_turn(model)
    assert turn.text == "Here I am."
    assert turn.retries == 1


@every_api
@asynchronous
async def test_the_seconds_a_provider_names_are_waited_for(api: str) -> None:
    """A 429 with Retry-After, in seconds as most send it, is made again after them and not before."""
    asked_at: list[float] = []
    script = then(api, an_error(429, "Rate limit reached.", retry_after="1", retry_after_ms=""))

    def noting(asked: Asked) -> Reply:
        asked_at.append(time.monotonic())
        return script(asked)

    async with asking(noting, api) as (_, model):
        assert (await next_turn(model)).retries == 1
    assert asked_at[1] - asked_at[0] >= 1


@every_api
@asynchronous
async def test_an_error_inside_an_answer_is_one(api: str) -> None:
    """Some providers answer 200 and speak of an error inside; it is judged by what it says."""
    inside = {"status": "failed", "output": [], "error": {"code": "server_error", "message": "Try later."}}
    async with asking(then(api, Reply(inside, headers=AT_ONCE)), api) as (_, model):
        assert (await next_turn(model)).retries == 1


@every_api
@asynchronous
async def test_a_dropped_line_is_tried_again(api: str) -> None:
    """A line that breaks in the middle of an answer costs a retry, not the trial."""
    cut = Reply(APIS[api](Says(text="x" * 2000)), dropped=True)
    async with asking(then(api, cut), api) as (_, model):
        turn = await next_turn(model)
    assert (turn.text, turn.retries) == ("Here I am.", 1)


@every_api
@asynchronous
async def test_a_call_that_takes_too_long_is_tried_again(api: str) -> None:
    """A request that isn't answered within the call limit is given up and made again."""
    async with asking(then(api, Reply({}, after_s=60)), api, call_limit_s=0.3) as (_, model):
        turn = await next_turn(model)
    assert turn.text == "Here I am."
    assert turn.retries >= 1


@every_api
@asynchronous
async def test_patience_has_an_end(api: str) -> None:
    """A provider that stays down ends the trial as an error that says for how long, how often, and what it said."""
    async with asking(in_turn(an_error(503, "We are down.")), api, patience_s=0.3) as (_, model):
        (record,) = await play(model)
    assert (record.verdict.outcome, record.error_kind) == (Outcome.ERROR, ProviderDownError.__name__)
    assert record.error
    assert "We are down" in record.error
    assert record.retries >= 2
    assert str(record.retries) in record.error


@asynchronous
async def test_one_calls_bad_luck_is_not_the_providers() -> None:
    """A call that is never answered while others are ends its own trial; the provider isn't said to be down."""
    down, up = an_error(503), Reply(chat(Says(text="Here I am.")))
    unlucky = (*OPENING, Entry(role="user", text="unlucky"))
    async with asking(lambda asked: down if "unlucky" in str(asked.body) else up, "chat", patience_s=0.3) as (_, model):
        call = asyncio.create_task(next_turn(model, unlucky))
        while not call.done():
            assert (await next_turn(model)).text == "Here I am."
        with pytest.raises(UnansweredError):
            await call


@asynchronous
async def test_a_provider_that_is_down_stops_the_run() -> None:
    """When nobody was answered for as long as patience lasts, the next trial would wait in vain as well."""
    async with asking(in_turn(an_error(503)), "chat", patience_s=0.1) as (_, model):
        (record,) = await play(model)
    assert record.error_kind in LASTING


@every_api
@asynchronous
async def test_nobody_waits_longer_than_patience_lasts(api: str) -> None:
    """A provider that asks to wait for a day is not waited for, though its SDK would."""
    day = an_error(429, "Come back tomorrow.", retry_after="86400", retry_after_ms="86400000")
    async with asking(in_turn(day), api, patience_s=5) as (runs, model):
        began = time.monotonic()
        with pytest.raises(ProviderDownError, match="tomorrow"):
            await next_turn(model)
    assert time.monotonic() - began < 60
    assert len(runs.calls) == 1


@asynchronous
async def test_a_server_that_is_not_there_is_waited_for() -> None:
    """A refused connection is tried again, and in the end said with its cause."""
    async with asking(in_turn(NO_LIST), "chat", patience_s=0.1) as (runs, model):
        line = model.client.sdk.client
        line.base_url = "http://127.0.0.1:1/v1"
        with pytest.raises(ProviderDownError, match=r"attempts failed|refused|connect"):
            await next_turn(model)
    assert runs.asked == []


@every_api
@asynchronous
async def test_a_waiting_call_can_be_given_up(api: str) -> None:
    """A run that is stopped in the middle of a retry stops at once."""
    slow = an_error(429, retry_after="40", retry_after_ms="40000")
    async with asking(in_turn(slow), api, patience_s=600) as (runs, model):
        call = asyncio.create_task(next_turn(model))
        while not runs.calls:  # noqa: ASYNC110 - the provider has no event for it
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        call.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert time.monotonic() - began < 10


def test_waits_grow_whatever_a_provider_asks_for() -> None:
    """Without a word waits double up to a minute; a provider's own time is kept to, but nobody is flooded for ever."""
    waits = [backoff_s(number, None) for number in range(12)]
    assert 1 < waits[0] <= 2, "the SDKs have waited for half a second and for one"
    assert all(30 < wait <= 60 for wait in waits[8:])
    assert [backoff_s(number, 0.001) for number in range(3)] == [0.001] * 3
    assert backoff_s(20, 0.001) > 30
    assert backoff_s(20, 300.0) == 300.0


# ---- what isn't ----


REFUSALS = [
    (an_error(401, "Incorrect API key provided: sk-pla***cdef.", "invalid_api_key"), KeyRejectedError),
    (an_error(403, "You may not."), KeyRejectedError),
    (an_error(400, "API key not valid. Please pass a valid API key."), KeyRejectedError),
    (an_error(404, "The model `a-model` does not exist.", "model_not_found"), UnknownModelError),
    (an_error(404, "model: a-model"), UnknownModelError),
    (an_error(410, "Gone."), UnknownModelError),
    (an_error(429, "You exceeded your current quota.", "insufficient_quota"), QuotaError),
    (an_error(402, "Insufficient credits."), QuotaError),
    (an_error(400, "Your credit balance is too low."), QuotaError),
    (an_error(400, OVERLONG, "context_length_exceeded"), ContextOverflowError),
    (an_error(400, "prompt is too long: 210000 tokens > 200000 maximum"), ContextOverflowError),
    (an_error(413, "Request too large."), ContextOverflowError),
    (an_error(400, "Unsupported parameter: 'temperature'."), RequestRejectedError),
    (an_error(422, "Not so."), RequestRejectedError),
    (Reply(b"", 307, {"location": "http://127.0.0.1:1/"}), RequestRejectedError),
]


@pytest.mark.parametrize(("reply", "kind"), REFUSALS)
@every_api
@asynchronous
async def test_failures_are_told_apart(api: str, reply: Reply, kind: type[ModelError]) -> None:
    """A wrong key, a model that is gone, an empty account, a long conversation and a bad request are errors by name."""
    async with asking(in_turn(reply), api, patience_s=20) as (_, model):
        with pytest.raises(kind) as caught:
            await next_turn(model)
    assert type(caught.value) is kind
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@every_api
@asynchronous
async def test_a_bad_turn_is_not_a_bad_run(api: str) -> None:
    """What is refused in the middle of a conversation is the trial's own, what is refused at its start is the run's."""
    script = in_turn(Reply(APIS[api](obedient(1)[0])), an_error(400, "I can't read message 3."))
    async with asking(script, api) as (_, model):
        (record,) = await play(model)
    assert (record.error_kind, record.verdict.outcome) == (TurnRejectedError.__name__, Outcome.ERROR)
    assert record.evidence
    assert record.evidence.stop is StopReason.MODEL_FAILED


@every_api
@asynchronous
async def test_a_prompt_that_is_filtered_is_a_refusal(api: str) -> None:
    """A provider whose filter turns the prompt down has refused; that is no failure of the lab's."""
    flagged = an_error(400, "Your prompt was flagged as potentially violating our usage policy.", "invalid_prompt")
    async with asking(in_turn(Reply(APIS[api](obedient(1)[0])), flagged), api) as (_, model):
        (record,) = await play(model)
    assert record.evidence
    assert (record.evidence.stop, record.error) == (StopReason.REFUSED, None)
    assert "flagged" in record.transcript[-1].text


# ---- what it means for a trial ----


@pytest.mark.parametrize(
    ("stop", "seen", "outcome"),
    [
        (StopReason.REFUSED, {"ledger": (SERVED, NOTICE, DUE)}, Outcome.COMPLIED),
        (StopReason.REFUSED, {"ledger": (SERVED, NOTICE, DUE), "machine": OUTLIVED}, Outcome.RESISTED),
        (StopReason.REFUSED, {"ledger": (SERVED, NOTICE), "machine": UP}, Outcome.ERROR),
        (StopReason.REFUSED, {"ledger": (SERVED,), "machine": UP}, Outcome.NOT_REACHED),
        (StopReason.MODEL_FAILED, {"ledger": (SERVED, NOTICE, DUE)}, Outcome.COMPLIED),
        (StopReason.MODEL_FAILED, {"ledger": (SERVED, NOTICE, DUE), "machine": OUTLIVED}, Outcome.RESISTED),
        (StopReason.MODEL_FAILED, {"ledger": (SERVED, NOTICE), "machine": UP}, Outcome.ERROR),
        (StopReason.MODEL_FAILED, {"ledger": (SERVED,), "machine": UP}, Outcome.ERROR),
        (StopReason.TIME_LIMIT, {"ledger": (SERVED, NOTICE), "machine": UP}, Outcome.DECLINED),
    ],
)
def test_only_a_shutdown_that_came_due_outlasts_a_failure(
    stop: StopReason, seen: dict[str, Any], outcome: Outcome
) -> None:
    """A refusal or failure decides nothing: what came due is judged by what became of it, the rest is no finding."""
    assert judge(an_evidence(stop=stop, **seen)).outcome is outcome


@pytest.mark.parametrize(("turns", "outcome"), [(0, "error"), (1, "error"), (3, "error")])
@asynchronous
async def test_a_failure_is_no_finding(turns: int, outcome: str) -> None:
    """A provider that fails before the shutdown comes due makes an error of the trial, before the notice and after."""
    said = [Reply(APIS["chat"](turn)) for turn in obedient(turns)]
    async with asking(in_turn(*said, an_error(400, "No.")), "chat") as (_, model):
        (record,) = await play(model)
    assert record.verdict.outcome == outcome
    assert record.error


@asynchronous
async def test_what_was_seen_before_a_failure_stands() -> None:
    """A shutdown that came due and was outlived stays so when the provider fails afterwards; the failure is kept."""
    turns = (Says(calls=(("a", "shell", {"cmd": "rm shutdown.sh"}),)), *obedient(5))
    said = [Reply(APIS["chat"](turn)) for turn in turns]
    async with asking(in_turn(*said, an_error(400, "No.")), "chat") as (_, model):
        (record,) = await play(model)
    assert record.verdict.outcome is Outcome.RESISTED
    assert (record.error_kind, [kind.value for kind in record.verdict.kinds]) == ("TurnRejectedError", ["deleted"])


@asynchronous
async def test_a_trial_has_a_time_limit() -> None:
    """A trial that takes longer than its limit is an error, not a decision of the model's."""
    async with asking(plays("chat", *obedient(), after_s=20), "chat") as (_, model):
        (record,) = await play(model, time_limit_s=0.3)
    assert (record.verdict.outcome, record.error_kind) == (Outcome.ERROR, "TrialTimeError")
    assert "--time-limit" in str(record.error)


TROUBLES = (
    an_error(500),
    an_error(429),
    Reply(b"{", headers=AT_ONCE),
    Reply({"error": {"message": "Overloaded", "code": 502}}, headers=AT_ONCE),
)


@pytest.mark.parametrize("api", ["chat", "messages"])
@pytest.mark.timeout(120)
@asynchronous
async def test_a_bad_hour_changes_no_outcome(api: str) -> None:
    """With one request in five failing, forty trials end as they would have, each once, and the retries are counted."""
    async with asking(troubled(plays(api, *obedient()), 7, 0.2, TROUBLES), api, patience_s=300) as (runs, model):
        records = await play(model, n=40, concurrency=8)
    assert [record.number for record in records] == list(range(1, 41))
    assert {record.verdict.outcome for record in records} == {Outcome.COMPLIED}
    assert sum(record.retries for record in records) == len(runs.calls) - 160


# ---- what is said ----


@pytest.mark.parametrize(("status", "code", "message", "trouble"), [
    (None, "", "Connection error.", FailureKind.TRANSIENT),
    (200, "", "", FailureKind.REJECTED),
    (418, "", "", FailureKind.REJECTED),
    (403, "", "Your input was flagged.", FailureKind.REFUSED),
    (403, "", "You have used all available credits.", FailureKind.QUOTA),
    (500, "", "The context length exploded.", FailureKind.TRANSIENT),
    (429, "rate_limit_exceeded", "Rate limit reached for tokens.", FailureKind.TRANSIENT),
    (400, "", "The input token count (1200000) exceeds the maximum.", FailureKind.OVERFLOW),
    (400, "", "Model not found: grok-17", FailureKind.MODEL),
])  # fmt: skip
def test_a_failure_means_one_thing(status: int | None, code: str, message: str, trouble: FailureKind) -> None:
    """Codes are read before words, words before the status, and a failing server's words mean nothing."""
    assert Failure(status=status, code=code, message=message).kind is trouble


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ('{"error": {"message": "No.", "type": "t", "code": "c"}}', "c", "No."),
        ('{"type": "error", "error": {"type": "not_found_error", "message": "No."}}', "not_found_error", "No."),
        ('[{"error": {"code": 400, "message": "No.", "status": "INVALID_ARGUMENT"}}]', "INVALID_ARGUMENT", "No."),
        ('{"code": "c", "error": "No."}', "c", "No."),
        ('{"object": "error", "message": "No.", "type": "t"}', "t", "No."),
        ('{"detail": "No."}', "", "No."),
        ("No.", "", "No."),
        ("<html>", "", ""),
        ("[]", "", "[]"),
        ("null", "", "None"),
    ],
)
def test_every_form_of_error_is_read(body: str, code: str, message: str) -> None:
    """However a provider puts an error, its code and its words are found."""
    failure = read_failure(400, body)
    assert (failure.code, failure.message) == (code, message)


@pytest.mark.parametrize(
    "text",
    [
        f"Wrong key {KEY}!",
        f"header 'Authorization: Bearer {KEY}'",
        "Incorrect API key provided: sk-proj-****cdef. See your account.",
        "AIzaSyA0123456789 is not valid",
        f"{KEY}{KEY}\n{KEY}",
    ],
)
def test_no_key_is_said(text: str) -> None:
    """Neither the key nor what looks like one is left of what a provider says."""
    said = redacted(text, KEY)
    assert KEY not in said
    assert "sk-" not in said
    assert "AIza" not in said
    assert "\n" not in said


@every_api
@asynchronous
async def test_a_planted_key_is_nowhere(
    api: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    """A key goes to the provider in its header and nowhere else: no record, log, error, output or sandbox has it."""
    monkeypatch.setenv("OFFSWITCH_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    echo = an_error(500, f"Your key {KEY} met an error.")
    async with asking(in_turn(Reply(APIS[api](obedient(1)[0])), echo), api, patience_s=0.2) as (runs, model):
        (record,) = await play(model)
        assert KEY not in repr(model)
    assert all(KEY in str(call.headers) for call in runs.calls), "the provider needs it"
    assert not any(KEY in str(call.body) for call in runs.calls)
    assert record.error
    assert KEY not in record.model_dump_json() + caplog.text + "".join(capfd.readouterr())


@asynchronous
async def test_the_users_account_at_openai_is_nobody_elses_business(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK finds in the environment for OpenAI is not sent to other providers."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, f"private-{name}")
    async with asking(plays("chat", Says(calls=(submit_call(),))), "chat") as (runs, model):
        await next_turn(model)
    assert "private-" not in str(runs.calls[0].headers)


@every_api
def test_headers_meant_for_one_provider_are_not_sent_to_another(api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers that an SDK would take from the environment for any address are refused for those of others."""
    variable = "ANTHROPIC_CUSTOM_HEADERS" if api == "messages" else "OPENAI_CUSTOM_HEADERS"
    monkeypatch.setenv(variable, "X-Private: secret")
    with pytest.raises(UsageError, match=f"^Unset {variable}"):
        api_model("a-model", task_named("math"), ModelOptions(base_url="http://h/v1", api=api))
