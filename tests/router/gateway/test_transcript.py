from __future__ import annotations

from typing import Any

import pytest

from router.gateway import transcript

USER = {"role": "user", "content": "hello"}
FUNCTION = {"name": "add", "arguments": '{"a": 1}'}
CALL = {"id": "c1", "type": "function", "function": FUNCTION}


def test_a_follow_up_turn_begins_with_the_turn_before() -> None:
    first = transcript.conversation({"messages": [USER]})
    reply = {"role": "assistant", "content": "hi"}
    second = transcript.conversation({"messages": [USER, reply, {"role": "user", "content": "more"}]})
    assert second.startswith(first + transcript.message(reply))


@pytest.mark.parametrize(
    "repeated",
    [
        {"content": "hi", "role": "assistant"},
        {"role": "assistant", "content": "hi", "refusal": None, "tool_calls": [], "annotations": [], "audio": None},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": ["hi"]},
    ],
)
def test_however_a_client_repeats_a_reply_it_is_the_same(repeated: dict[str, Any]) -> None:
    assert transcript.message(repeated) == transcript.message({"role": "assistant", "content": "hi"})


@pytest.mark.parametrize(
    "repeated",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [{"index": 0, **CALL}]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": dict(reversed(FUNCTION.items()))}]},
    ],
)
def test_tool_calls_are_the_same_however_repeated(repeated: dict[str, Any]) -> None:
    assert transcript.message(repeated) == transcript.message(
        {"role": "assistant", "content": None, "tool_calls": [CALL]}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"role": "system", "content": "hello"},
        {"role": "user", "content": "hallo"},
        {"role": "user", "content": "hello", "name": "ann"},
        {"role": "user", "content": "hello", "tool_call_id": "c1"},
        {"role": "user", "content": "hello", "tool_calls": [CALL]},
        {"role": "user", "content": "hello", "reasoning": "hm"},
    ],
)
def test_what_differs_for_the_engine_differs(other: dict[str, Any]) -> None:
    assert transcript.message(other) != transcript.message(USER)


def test_reasoning_has_two_names() -> None:
    old = {"role": "assistant", "reasoning_content": "hm", "content": "hi"}
    new = {"role": "assistant", "reasoning": "hm", "reasoning_content": "hm", "content": "hi"}
    assert transcript.message(old) == transcript.message(new)


def test_images_differ_by_content_and_cost_little() -> None:
    def image(url: str) -> bytes:
        return transcript.message({"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]})

    assert image("a" * 100_000) != image("b" * 100_000)
    assert len(image("a" * 100_000)) < 100


@pytest.mark.parametrize("content", [7, {"a": 1}, [None], [{"type": "text", "text": 1}]])
def test_contents_of_unknown_shape_are_taken_as_they_are(content: object) -> None:
    one, two = {"role": "user", "content": content}, {"role": "user", "content": "x"}
    assert transcript.message(one) == transcript.message(dict(one)) != transcript.message(two)


@pytest.mark.parametrize("calls", ["text", {"a": 1}, [1], [{"function": "add"}]])
def test_tool_calls_of_unknown_shape_are_taken_as_they_are(calls: object) -> None:
    assert transcript.message({**USER, "tool_calls": calls}) != transcript.message(USER)


def test_lone_surrogates_are_text() -> None:
    assert transcript.message({"role": "user", "content": "\ud800"}).endswith(b"\xed\xa0\x80")


@pytest.mark.parametrize("name", [*transcript.ROOT_FIELDS, "tool_choice"])
def test_each_root_field_is_told_apart(name: str) -> None:
    value = "none" if name == "tool_choice" else [{"any": "thing"}]
    assert transcript.root("chat", {name: value}) != transcript.root("chat", {})
    assert transcript.root("chat", {name: None}) == transcript.root("chat", {})


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 1},
        {"tool_choice": "auto"},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"priority": 3},
        {"stream": True},
        {"max_tokens": 5},
    ],
)
def test_what_leaves_the_prompts_beginning_alone_is_not_in_the_root(field: dict[str, Any]) -> None:
    assert transcript.root("chat", field) == transcript.root("chat", {})


def test_tools_stand_behind_the_system_message_and_count() -> None:
    system, tools = {"role": "system", "content": "be brief"}, [{"type": "function", "function": {"name": "add"}}]
    text = transcript.conversation({"messages": [system, USER], "tools": tools})
    assert text.startswith(transcript.message(system) + transcript.canonical(tools))
    assert transcript.conversation({"messages": [USER], "tools": tools}).startswith(transcript.canonical(tools))
    assert transcript.conversation({"messages": [], "tools": tools}) == transcript.canonical(tools)
