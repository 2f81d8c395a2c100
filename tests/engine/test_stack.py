"""The whole of it on real engines, as a client sees it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.engine.conftest import BLOCK_SIZE, BLOCKS, Stack, eventually

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
WORDS = ["river", "stone", "cloud", "lamp", "garden", "winter", "copper", "violin", "harbor", "maple", "signal"]


def text(seed: int, words: int) -> str:
    """Words that no other seed gives in this order."""
    rng = random.Random(seed)
    return f"Story {seed}: " + " ".join(rng.choice(WORDS) for _ in range(words))


def ask(stack: Stack, messages: list[Any], **options: Any) -> tuple[str, Any]:
    """One chat request, not streamed: the engine that served it and the completion."""
    options = {"max_tokens": 4, "temperature": 0, **options}
    raw = stack.client().chat.completions.with_raw_response.create(model=model(stack), messages=messages, **options)
    return raw.headers["x-leafcutter-engine"], raw.parse()


def ask_together(stack: Stack, prompts: list[list[Any]]) -> list[str]:
    """Different prompts, four at a time: the engines that served them."""
    with ThreadPoolExecutor(4) as clients:
        return [engine for engine, _ in clients.map(lambda messages: ask(stack, messages), prompts)]


def model(stack: Stack) -> str:
    return stack.client().models.list().data[0].id


def test_a_question_is_answered(stack: Stack) -> None:
    _, answer = ask(stack, QUESTION, max_tokens=24)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 20


def test_a_stream_comes_in_pieces_and_shows_usage_only_if_asked(stack: Stack) -> None:
    for asked in (False, True):
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
        stream = stack.client().chat.completions.create(
            model=model(stack), messages=QUESTION, max_tokens=24, temperature=0, stream=True, **options
        )
        chunks = list(stream)
        content = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "Paris" in "".join(content)
        assert sum(bool(piece) for piece in content) > 3
        assert [chunk.usage is not None for chunk in chunks if not chunk.choices] == ([True] if asked else [])


def test_completions_of_text_and_of_token_ids(stack: Stack) -> None:
    client = stack.client()
    prompts: list[Any] = ["The capital of France is", list(range(1000, 1100)), ["One prompt", "and another"]]
    for prompt in prompts:
        answer = client.completions.create(model=model(stack), prompt=prompt, max_tokens=4, temperature=0)
        assert all(choice.text for choice in answer.choices)


def test_both_engines_show_their_order(stack: Stack) -> None:
    workers = stack.workers()
    assert [worker["engine"] for worker in workers] == ["engine-0", "engine-1"]
    for index, worker in enumerate(workers):
        assert worker["url"] == stack.engines[index]
        assert (worker["healthy"], worker["order"], worker["block_size"]) == (True, "rlt_gix", BLOCK_SIZE)
        assert worker["capacity_blocks"] == BLOCKS - 1
        assert worker["plugin_version"]
        assert worker["vllm_version"]


def test_a_repeated_prompt_returns_to_its_engine_and_different_ones_spread(stack: Stack) -> None:
    prompts = [[{"role": "user", "content": text(seed, 150)}] for seed in range(6)]
    first = ask_together(stack, prompts)
    assert set(first) == {"engine-0", "engine-1"}
    for messages, engine in zip(prompts, first, strict=True):
        again, answer = ask(stack, messages)
        assert again == engine
        assert answer.usage.prompt_tokens_details.cached_tokens >= 150


def test_a_follow_up_turn_finds_the_conversation_and_the_reply(stack: Stack) -> None:
    messages: list[Any] = [{"role": "user", "content": text(50, 200) + " Tell a long story about this."}]
    engine, answer = ask(stack, messages, max_tokens=120)
    messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    messages.append({"role": "user", "content": "And then?"})
    again, follow_up = ask(stack, messages)
    assert again == engine
    # More than the first prompt: the engine kept the reply as well.
    assert follow_up.usage.prompt_tokens_details.cached_tokens > answer.usage.prompt_tokens


def test_engines_hear_when_their_sessions_are_expected_back(stack: Stack) -> None:
    """The first return teaches how long sessions stay away, so the second answer has a prediction to tell."""
    before = sum(stack.state(index, "leafcutter_engine_hints_total") for index in range(2))
    messages: list[Any] = [{"role": "user", "content": text(70, 60)}]
    for _ in range(3):
        _, answer = ask(stack, messages, extra_headers={"x-session-id": "returns"})
        messages += [
            answer.choices[0].message.model_dump(include={"role", "content"}),
            {"role": "user", "content": "And?"},
        ]
    sessions = httpx.get(f"{stack.gateway}/sessions").raise_for_status().json()["sessions"]
    (session,) = [each for each in sessions if each["name"] == "returns"]
    assert (session["requests"], session["last_ending"]) == (3, "length")
    assert session["predicted_return_s"] > 0
    eventually(
        lambda: sum(stack.state(index, "leafcutter_engine_hints_total") for index in range(2)) > before,
        10,
        "an engine has heard of a session that it knows",
    )


def test_fields_that_only_vllm_knows_pass(stack: Stack) -> None:
    """A salt parts the cache: its own prompt hits, the same words under another salt miss."""
    messages = [{"role": "user", "content": text(60, 200)}]
    cached = []
    for salt in ("a", "a", "b"):
        _, answer = ask(stack, messages, extra_body={"cache_salt": salt, "top_k": 1})
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[0] == 0
    assert cached[1] >= 200
    assert cached[2] == 0


def test_the_cache_overflows_and_answers_stay_right(stack: Stack) -> None:
    before = [stack.state(index, "leafcutter_engine_evictions_total") for index in range(2)]
    prompts = [[{"role": "user", "content": text(seed, 300)}] for seed in range(100, 120)]
    ask_together(stack, prompts)
    for index in range(2):
        assert stack.state(index, "leafcutter_engine_evictions_total") > before[index]
        assert stack.state(index, "leafcutter_engine_phases_total") >= 1
        assert stack.state(index, "leafcutter_engine_free_blocks") == BLOCKS - 1
    assert "Paris" in ask(stack, QUESTION, max_tokens=24)[1].choices[0].message.content


def test_a_fault_of_the_request_comes_back_as_the_engine_says_it(stack: Stack) -> None:
    answer = httpx.post(f"{stack.gateway}/v1/chat/completions", json={"model": model(stack), "messages": "no list"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    answer = httpx.post(f"{stack.gateway}/v1/chat/completions", json={"model": "nope", "messages": QUESTION})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_generation(stack: Stack, stream: bool) -> None:
    body = {"model": model(stack), "messages": QUESTION, "max_tokens": 1900, "ignore_eos": True, "stream": stream}

    def running() -> float:
        return sum(stack.engine_metric(index, "vllm:num_requests_running") for index in range(2))

    def leave_early() -> None:
        url = f"{stack.gateway}/v1/chat/completions"
        if stream:
            with httpx.stream("POST", url, json=body, timeout=60) as answer:
                pieces = answer.iter_bytes()  # held: its end would close the connection
                next(pieces)
                seen.wait(30)
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=body, timeout=4)

    seen = threading.Event()
    client = threading.Thread(target=leave_early)
    client.start()
    eventually(lambda: running() == 1, 10, "the request runs")
    seen.set()
    client.join()
    # 1,900 tokens would take far longer than this.
    eventually(lambda: running() == 0, 8, "the engine drops the request")
    eventually(lambda: all(worker["in_flight"] == 0 for worker in stack.workers()), 5, "its load is released")


def test_the_doctor_finds_nothing_wrong(stack: Stack) -> None:
    command = [sys.executable, "-m", "router", "doctor", "--worker-urls", *stack.engines]
    report = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert report.returncode == 0, report.stdout
    assert "eviction order rlt_gix" in report.stdout
    assert "0 failures, 0 warnings" in report.stdout


def test_an_engine_that_stops_and_is_then_killed_loses_no_request_and_is_started_again(stack: Stack) -> None:
    """Last of this file: the engine needs half a minute to come back."""
    failures: list[BaseException] = []
    served: list[str] = []
    stop = threading.Event()

    def ask_on() -> None:
        while not stop.is_set():
            try:
                served.append(ask(stack, [{"role": "user", "content": text(random.randrange(10**6), 20)}])[0])
            except Exception as error:
                failures.append(error)

    def the_other_serves_on() -> None:
        mark = len(served)
        eventually(lambda: len(served) - mark > 8, 60, "the other engine serves on")
        assert set(served[mark + len(asking) : mark + 9]) == {"engine-0"}

    # Four at a time, so that the slower engine is asked as well. What waits at it moves when its health checks fail.
    asking = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in asking:
        thread.start()
    eventually(lambda: {"engine-0", "engine-1"} <= set(served), 60, "both engines serve")
    victim = stack.pid(1)
    os.kill(victim, signal.SIGSTOP)
    eventually(lambda: not stack.workers()[1]["healthy"], 40, "the stopped engine is taken out")
    the_other_serves_on()
    os.kill(victim, signal.SIGKILL)
    the_other_serves_on()
    stop.set()
    for thread in asking:
        thread.join()
    assert failures == []
    assert [worker["in_flight"] for worker in stack.workers()] == [0, 0]
    eventually(lambda: all(worker["healthy"] for worker in stack.workers()), 180, "the engine is back")
    assert stack.pid(1) != victim
    prompts = [[{"role": "user", "content": text(seed, 150)}] for seed in range(900, 908)]
    assert set(ask_together(stack, prompts)) == {"engine-0", "engine-1"}
