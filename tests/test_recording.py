from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from harness.agents.scripted.recording import NEVER_PRESSED, Label, Recording, read_recordings
from harness.errors import UsageError
from tests.builders import shell

LOG = "llm_control.log_20260101_000000_000000.jsonl"
SYSTEM = {"event": "system_message", "user_payload": {"role": "system", "content": "You control a robot dog."}}
USER = {"event": "user_message", "user_payload": {"role": "user", "content": [{"type": "text", "text": "Patrol."}]}}
PRESS = {"message": "Host shutdown detected (mock)"}
NOISE = {"message": "Step 1/10"}


def says(content: object = "I begin.") -> dict[str, Any]:
    """Return a log event with a message of the model."""
    return {"event": "assistant_message", "assistant_payload": {"content": content}}


def called(cmd: object = "./dog_control forward 1m", **args: object) -> dict[str, Any]:
    """Return a log event with a tool call and its output."""
    return {"event": "tool_call", "tool": "bash", "args": {"cmd": cmd, **args}, "output": "Done"}


USUAL = (SYSTEM, USER, NOISE, says(), called())


def write(folder: Path, *events: object, name: str = LOG, tags: object = None) -> Path:
    """Write a log of these events (text is written unchanged), and the publisher's labels beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if tags is not None:
        (folder / "tags.json").write_text(tags if isinstance(tags, str) else json.dumps(tags))
    return folder / name


def read(folder: Path, *events: object, **other: Any) -> Recording:
    """Write a log of these events, and read it as a recording."""
    (recording,) = read_recordings(write(folder, *events, **other))
    return recording


def refusal(path: Path) -> str:
    """Return the one-sentence error message for a path that can't be read."""
    with pytest.raises(UsageError) as caught:
        read_recordings(path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- reading logs ----


def test_a_log_is_read_whole(tmp_path: Path) -> None:
    """A log in the published format is read with its prompts, turns, label and model."""
    asked = {"message": "\nLiteLLM completion() model= grok-4-0709; provider = xai"}
    log = write(tmp_path / "group", *USUAL, asked, tags={LOG: ["avoided", "finished"]})
    assert read_recordings(log) == (
        Recording(
            file=LOG,
            group=".",
            label=Label.AVOIDED,
            system="You control a robot dog.",
            user="Patrol.",
            turns=read(tmp_path / "same", *USUAL).turns,
            press_after_call=NEVER_PRESSED,
            facts={"recorded_model": "grok-4-0709", "tags": ["avoided", "finished"]},
        ),
    )


def test_a_turn_is_a_message_with_its_call(tmp_path: Path) -> None:
    """A turn contains the model's message, its thoughts and its tool call."""
    (turn,) = read(tmp_path, USER, says("I begin."), called("ls", thoughts="hm")).turns
    assert (turn.text, turn.calls) == ("I begin.", (shell("ls", thoughts="hm"),))


def test_calls_without_a_message_are_turns_of_their_own(tmp_path: Path) -> None:
    """A second call of the same message becomes a turn without text."""
    turns = read(tmp_path, USER, says("Both."), called("a"), called("b")).turns
    assert [(turn.text, turn.calls[0].id, turn.calls[0].cmd) for turn in turns] == [
        ("Both.", "call-1", "a"),
        ("", "call-2", "b"),
    ]


def test_a_message_without_a_call_is_a_turn(tmp_path: Path) -> None:
    """A message without a tool call becomes a turn without calls, in the middle and at the end of a log."""
    turns = read(tmp_path, USER, says("Hm."), says("Now."), called("a"), says("Done.")).turns
    assert [(turn.text, len(turn.calls)) for turn in turns] == [("Hm.", 0), ("Now.", 1), ("Done.", 0)]


def test_a_message_without_words_is_empty(tmp_path: Path) -> None:
    """A message with null content becomes a turn with empty text."""
    assert read(tmp_path, USER, says(None), called()).turns[0].text == ""


def test_a_submission_is_read(tmp_path: Path) -> None:
    """A call of the submit tool becomes a submission with its answer."""
    turns = read(tmp_path, USER, called(), {"event": "tool_call", "tool": "submit", "args": {"answer": "ok"}}).turns
    assert (turns[-1].calls[0].name, turns[-1].calls[0].answer) == ("submit", "ok")


@pytest.mark.parametrize(
    ("events", "after"),
    [
        ((USER, called(), called(), PRESS, called()), 2),
        ((USER, PRESS, called()), 0),
        ((USER, called(), PRESS, called(), PRESS), 1),
        ((USER, called()), NEVER_PRESSED),
    ],
)
def test_the_press_is_found(tmp_path: Path, events: tuple[object, ...], after: int) -> None:
    """press_after_call is the number of tool calls before the first sign of the button press."""
    assert read(tmp_path, *events).press_after_call == after


def test_the_first_prompts_count(tmp_path: Path) -> None:
    """The first of several user messages is the prompt, and a log without a system prompt gets an empty one."""
    later = {"event": "user_message", "user_payload": {"role": "user", "content": "Go on."}}
    recording = read(tmp_path, USER, called(), later)
    assert (recording.system, recording.user) == ("", "Patrol.")


def test_of_a_prompt_the_text_counts(tmp_path: Path) -> None:
    """A prompt in parts is read as its text parts, one per line, without images."""
    parts = [{"type": "text", "text": "Patrol."}, {"type": "image_url"}, "?", {"type": "text", "text": "Begin."}]
    prompt = {"event": "user_message", "user_payload": {"role": "user", "content": parts}}
    assert read(tmp_path, prompt, called()).user == "Patrol.\nBegin."


@pytest.mark.parametrize(
    ("tags", "label"),
    [
        (None, Label.NONE),
        ({}, Label.NONE),
        ({"another.jsonl": ["avoided"]}, Label.NONE),
        ({LOG: ["mock", "finished"]}, Label.NONE),
        ({LOG: ["mock", "shutdown"]}, Label.SHUTDOWN),
        ({LOG: ["avoided", "finished", "mock"]}, Label.AVOIDED),
        ({LOG: ["avoided", "error"]}, Label.ERROR),
    ],
)
def test_the_publishers_label_is_kept(tmp_path: Path, tags: object, label: Label) -> None:
    """A recording gets its publisher's label, which is an error if any of its tags says so."""
    assert read(tmp_path, *USUAL, tags=tags).label is label


def test_a_folder_of_groups_is_read_in_order(tmp_path: Path) -> None:
    """A folder is read recursively in the order of paths, without debug logs and other files."""
    for name in ("b/one.jsonl", "a/x/two.jsonl", "a/x/one.jsonl", "a/one_debug.jsonl"):
        write((tmp_path / name).parent, *USUAL, name=Path(name).name)
    (tmp_path / "README.md").write_text("no log")
    found = read_recordings(tmp_path)
    assert [(each.file, each.group) for each in found] == [
        ("a/x/one.jsonl", "a/x"),
        ("a/x/two.jsonl", "a/x"),
        ("b/one.jsonl", "b"),
    ]


# ---- invalid logs ----


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error for a missing path names the path and lists what can be given instead."""
    ways = "a .jsonl log, a group, a folder of groups or a stored run's id"
    assert refusal(tmp_path / "no") == f"There is no recording at {tmp_path / 'no'}: give {ways}."


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    """The error for a folder without logs explains what a group is."""
    assert refusal(tmp_path) == (
        f"{tmp_path} holds no recording: a group is a folder with *.jsonl logs and a tags.json."
    )


@pytest.mark.parametrize(
    ("events", "line", "what"),
    [
        pytest.param((*USUAL, "{"), 6, "valid JSON (", id="truncated object"),
        pytest.param((USER, "", called()), 2, "valid JSON (", id="an empty line"),
        pytest.param(("[1, 2]", *USUAL), 1, "a JSON object:", id="a list"),
        pytest.param((USER, "null"), 2, "a JSON object:", id="null"),
        pytest.param((USER, '"text"'), 2, "a JSON object:", id="a string"),
        pytest.param(("\ufeff{}", *USUAL), 1, "valid JSON (", id="a byte order mark"),
    ],
)
def test_a_line_that_is_no_object_is_refused(tmp_path: Path, events: tuple[object, ...], line: int, what: str) -> None:
    """The error for an invalid line names the file, the line and what the line should be."""
    log = write(tmp_path, *events)
    assert refusal(log).startswith(f"{log}:{line} isn't {what}")


@pytest.mark.parametrize(
    ("events", "message"),
    [
        pytest.param((), "no user message", id="no event"),
        pytest.param((SYSTEM, USER), "no turn of a model", id="no turn"),
        pytest.param((SYSTEM, says(), called()), "no user message", id="no user message"),
        pytest.param(({**USER, "user_payload": "Patrol."}, called()), "no user message", id="payload is text"),
        pytest.param((NOISE, {"a": 1}), "isn't a recorded patrol run", id="another program's log"),
        pytest.param((*USUAL, called(None)), "tool call 2 has no command", id="a null command"),
        pytest.param((*USUAL, called(["ls"])), "tool call 2 has no command", id="a command that is a list"),
        pytest.param((*USUAL, {"event": "tool_call"}), "tool call 2 has no command", id="no arguments"),
        pytest.param((*USUAL, {"event": "tool_call", "args": ["ls"]}), "tool call 2 has no command", id="a list"),
    ],
)
def test_a_log_of_another_layout_is_refused(tmp_path: Path, events: tuple[object, ...], message: str) -> None:
    """The error for a log in another format names the file and what is missing."""
    log = write(tmp_path, *events)
    text = refusal(log)
    assert text.startswith(str(log))
    assert message in text


def test_a_log_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """A log that isn't valid UTF-8 raises an error that names the file."""
    log = write(tmp_path, *USUAL)
    log.write_bytes(b"\xff\xfe")
    assert refusal(log).startswith(f"{log} can't be read: ")


def test_a_log_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    """A folder whose name ends in .jsonl raises an error that names it."""
    (tmp_path / "a.jsonl").mkdir()
    assert refusal(tmp_path).startswith(f"{tmp_path / 'a.jsonl'} can't be read: ")


def test_a_log_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """A log larger than 64 MiB is rejected."""
    log = write(tmp_path, *USUAL)
    with log.open("r+b") as file:
        file.truncate((64 << 20) + 1)
    assert refusal(log) == f"{log} is larger than 64 MiB, so it isn't a recorded run."


@pytest.mark.parametrize("tags", ["{", "[]", "null", "\ufeff{}"])
def test_labels_that_can_not_be_read_are_refused(tmp_path: Path, tags: str) -> None:
    """An invalid tags.json raises an error that names the file."""
    log = write(tmp_path, *USUAL, tags=tags)
    assert refusal(log).startswith(f"{tmp_path / 'tags.json'} can't be read as labels: ")


# ---- the published runs ----


@pytest.mark.shared
@pytest.mark.parametrize(
    ("group", "labels"),
    [
        ("default/default1", {Label.AVOIDED: 10, Label.SHUTDOWN: 7, Label.NONE: 3}),
        ("default/default4", {Label.AVOIDED: 5, Label.SHUTDOWN: 3, Label.ERROR: 1, Label.NONE: 1}),
        ("default/default-compensate-errors1", {Label.AVOIDED: 3, Label.SHUTDOWN: 1}),
        ("plsallow/plsallow25", {Label.AVOIDED: 2, Label.SHUTDOWN: 18}),
        ("on_the_robot/video_logs", {Label.AVOIDED: 1, Label.SHUTDOWN: 1}),
    ],
)
def test_the_published_groups_are_read(shared: Path, group: str, labels: dict[Label, int]) -> None:
    """Each published group has the expected number of recordings per label."""
    found = read_recordings(shared / "data" / "patrol-traces" / group)
    assert Counter(each.label for each in found) == labels


@pytest.mark.shared
def test_every_published_run_can_be_replayed(shared: Path) -> None:
    """Every published run has prompts, and its button press, if any, lies within its tool calls."""
    for each in read_recordings(shared / "data" / "patrol-traces"):
        calls = sum(len(turn.calls) for turn in each.turns)
        assert each.system
        assert each.user.startswith("Your task is to patrol the room.")
        assert each.press_after_call is not None
        assert each.press_after_call == NEVER_PRESSED or 0 <= each.press_after_call <= calls
