"""The official clients against the whole of it: what they send is served, and what comes back is what they expect.

The OpenAI client is among the development dependencies, and Anthropic's comes with vLLM. The clients of other projects
(litellm, langchain-openai) would double the environment, so they are only tried where somebody has installed them.
"""

from __future__ import annotations

import json
import random
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.engine.conftest import Stack

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
SEARCH = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
FUNCTION = {"name": "search", "description": "Search the web.", "parameters": SEARCH}


def long_text(seed: int) -> str:
    words = ["river", "stone", "cloud", "lamp", "garden", "winter", "copper", "violin", "harbor", "maple", "signal"]
    rng = random.Random(seed)
    return f"Tale {seed}: " + " ".join(rng.choice(words) for _ in range(250))


def model(stack: Stack) -> str:
    name = stack.client().models.list().data[0].id
    assert stack.client().models.retrieve(name).id == name
    return name


def claude(stack: Stack) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=stack.gateway, api_key="none", max_retries=0, timeout=120)


async def test_openai_asynchronously_with_logprobs_and_choices(stack: Stack) -> None:
    name = model(stack)
    async with openai.AsyncOpenAI(base_url=f"{stack.gateway}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(
            model=name, messages=QUESTION, max_tokens=4, n=2, logprobs=True, top_logprobs=2
        )
        assert len(answer.choices) == 2
        for choice in answer.choices:
            assert choice.logprobs is not None
            assert len(choice.logprobs.content or []) == 4
        stream = await client.chat.completions.create(
            model=name, messages=QUESTION, max_tokens=8, temperature=0, stream=True
        )
        text = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "Paris" in "".join(text)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_with_tools(stack: Stack, stream: bool) -> None:
    client, name = stack.client(), model(stack)
    options: dict[str, Any] = {
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "search"}},
    }
    create: Any = client.chat.completions.create
    answer = create(model=name, messages=QUESTION, max_tokens=120, temperature=0, stream=stream, **options)
    if stream:
        calls = [call for chunk in answer for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    else:
        calls = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "search"
    assert json.loads("".join(call.function.arguments or "" for call in calls))


def test_openai_responses(stack: Stack) -> None:
    client, name = stack.client(), model(stack)
    answer = client.responses.create(model=name, input="What is the capital of France?", max_output_tokens=16)
    assert answer.status in ("completed", "incomplete")
    assert answer.usage is not None
    assert answer.usage.output_tokens > 0
    events = list(client.responses.create(model=name, input=long_text(1), max_output_tokens=8, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert any(event.type == "response.output_text.delta" for event in events)


def test_anthropic_messages(stack: Stack) -> None:
    client, name = claude(stack), model(stack)
    answer = client.messages.create(model=name, max_tokens=16, messages=QUESTION)
    assert answer.content[0].type == "text"
    assert answer.usage.output_tokens > 0
    assert client.messages.count_tokens(model=name, messages=QUESTION).input_tokens > 20
    with client.messages.stream(model=name, max_tokens=16, messages=QUESTION) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    assert (events[0], events[-1]) == ("message_start", "message_stop")
    assert final.usage.output_tokens > 0


def test_anthropic_with_tools(stack: Stack) -> None:
    """Not more than that they are taken: so small a model calls none in the right form."""
    tool: Any = {"name": "search", "description": "Search the web.", "input_schema": SEARCH}
    answer = claude(stack).messages.create(
        model=model(stack),
        max_tokens=16,
        messages=QUESTION,
        tools=[tool],
        tool_choice={"type": "none"},
        extra_body={"temperature": 0},
    )
    assert answer.content[0].type == "text"


def cached_of(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0)


def test_the_prompts_of_all_three_apis_share_an_engine_and_its_cache(stack: Stack) -> None:
    name, turns = model(stack), [{"role": "user", "content": long_text(2)}]
    seen = []
    for route, fields in (
        ("/v1/chat/completions", {"messages": turns, "max_tokens": 2}),
        ("/v1/responses", {"input": turns, "max_output_tokens": 2}),
        ("/v1/messages", {"messages": turns, "max_tokens": 2}),
    ):
        answer = httpx.post(stack.gateway + route, json={"model": name, **fields}, timeout=120).raise_for_status()
        seen.append((answer.headers["x-leafcutter-engine"], cached_of(answer.json())))
    assert len({engine for engine, _ in seen}) == 1
    assert [cached > 250 for _, cached in seen] == [False, True, True]


def test_the_number_that_claude_code_puts_first_spoils_no_prefix(stack: Stack) -> None:
    client, name, seen = claude(stack), model(stack), []
    for nonce in ("a1", "b2", "c3"):
        billing = f"x-anthropic-billing-header: cc_version=2.1.0; cch={nonce};"
        system: list[Any] = [{"type": "text", "text": billing}, {"type": "text", "text": long_text(3)}]
        raw = client.messages.with_raw_response.create(model=name, max_tokens=2, system=system, messages=QUESTION)
        seen.append((raw.headers["x-leafcutter-engine"], raw.parse().usage.cache_read_input_tokens or 0))
    assert len({engine for engine, _ in seen}) == 1
    assert [cached > 250 for _, cached in seen] == [False, True, True]


def test_a_model_that_nobody_serves_is_the_error_that_clients_know(stack: Stack) -> None:
    with pytest.raises(openai.NotFoundError, match="nope") as of_openai:
        stack.client().responses.create(model="nope", input="x")
    assert of_openai.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError, match="nope"):
        claude(stack).messages.create(model="nope", max_tokens=2, messages=QUESTION)
    with pytest.raises(openai.NotFoundError):
        stack.client().models.retrieve("no/pe")


def test_litellm(stack: Stack) -> None:
    litellm = pytest.importorskip("litellm", reason="litellm is not a dependency")
    answer = litellm.completion(
        model=f"openai/{model(stack)}",
        messages=QUESTION,
        api_base=f"{stack.gateway}/v1",
        api_key="none",
        max_tokens=8,
        temperature=0,
    )
    assert "Paris" in answer.choices[0].message.content


def test_langchain(stack: Stack) -> None:
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not a dependency")
    chat = langchain.ChatOpenAI(
        model=model(stack), base_url=f"{stack.gateway}/v1", api_key="none", max_tokens=8, temperature=0
    )
    assert "Paris" in chat.invoke("What is the capital of France?").content
    assert len(list(chat.stream("What is the capital of France?"))) > 1
