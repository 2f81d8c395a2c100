from array import array
from dataclasses import replace
from typing import Any

import pytest

from router.core.sessions import FORGET_S, MOST_OF_NAME, Session, Sessions
from router.core.working_set import WorkingSet
from router.learners.return_times import ReturnTimes
from router.prefix.blocks import chain
from router.types import NO_EXPECTATION, Decision, Ending, EngineId, Outcome, ParsedRequest, Score, Scores, Stop, Unit

E0, E1 = EngineId("engine-0"), EngineId("engine-1")
A, B, C = b"a" * 64, b"b" * 64, b"c" * 64


class Play:
    """Requests to one router's sessions, whose answers take a second."""

    def __init__(self, **options: Any) -> None:
        self.sessions = Sessions(ReturnTimes(), WorkingSet(), "s", **{"most": 1000, **options})
        self.booking = 0

    def begin(
        self, prompt: bytes, at_s: float, engine: EngineId = E0, tried: tuple[EngineId, ...] = (), **fields: Any
    ) -> Decision:
        request = ParsedRequest("r", "/v1/chat/completions", "m", chain(b"", prompt, 16), False, None, **fields)
        number = self.sessions.arrive(request, at_s, again=bool(tried))
        self.booking += 1
        score = Score(engine, 0.0, Unit.RANK, None, 0.0)
        decision = Decision(
            request,
            engine,
            "p",
            "r",
            None,
            len(prompt),
            0.0,
            1.0,
            Scores([], array("d"), Unit.RANK),
            score,
            self.booking,
            at_s,
            NO_EXPECTATION,
            tried,
            conversation=number,
        )
        self.sessions.dispatched(decision)
        return decision

    def end(
        self, decision: Decision, ending: Ending = Ending.OK, stop: Stop = Stop.TOOL_CALL, **fields: Any
    ) -> Session | None:
        return self.sessions.completed(decision, Outcome(ending, decision.dispatched_s + 1, stop=stop, **fields))

    def ask(self, prompt: bytes, at_s: float, **fields: Any) -> str | None:
        decision = self.begin(prompt, at_s, **fields)
        self.end(decision)
        return decision.conversation


@pytest.mark.parametrize("session", [None, "x"])
def test_a_prompt_that_goes_on_or_repeats_is_the_same_session_and_any_other_is_a_new_one(session: str | None) -> None:
    play = Play()
    first = play.ask(A, 0, session=session)
    assert play.ask(A + B, 10, session=session) == first
    assert play.ask(A + B, 20, session=session) == first
    other = play.ask(A + C, 30, session=session)
    assert other != first
    assert play.ask(A + B + C, 40, session=session) == first
    assert play.ask(A + C + B, 50, session=session) == other


def test_a_name_is_needed_to_be_found_by_it() -> None:
    play = Play()
    named, nameless = play.ask(A, 0, session="x"), play.ask(A, 0)
    assert named != nameless
    assert play.ask(A + B, 1, session="y") not in (named, nameless)
    assert play.ask(A + B, 2) == nameless
    assert play.ask(A + C, 3, session="x") == named


def test_the_first_of_a_name_is_the_parent_unless_the_client_names_one() -> None:
    play = Play()
    main, other = play.ask(A, 0, session="x"), play.ask(A, 0, session="y")
    play.ask(B, 1, session="x")
    assert next(iter(play.sessions)).parent == main
    play.ask(C, 2, session="x", parent="y")
    assert next(iter(play.sessions)).parent == other
    play.ask(C, 3, session="z", parent="nobody")
    assert next(iter(play.sessions)).parent is None


def test_short_prompts_of_one_name_are_one_session() -> None:
    play = Play()
    first = play.ask(b"hi", 0, session="x")
    assert play.ask(b"hi. hello", 1, session="x") == first
    assert play.ask(b"hi", 2) != play.ask(b"hi", 3)


def test_the_return_is_predicted_at_the_end_and_judged_at_the_next_request() -> None:
    play = Play()
    for turn in range(12):
        decision = play.begin(A * (turn + 1), turn * 11.0, session="x")
        play.end(decision, prompt_tokens=100, output_tokens=20, tool="read")
    (idle,) = play.sessions
    assert (idle.requests, idle.running, idle.engine, idle.context_tokens) == (12, 0, E0, 120)
    assert (idle.stop, idle.tool, idle.ended_s) == (Stop.TOOL_CALL, "read", 122.0)
    assert idle.return_s == pytest.approx(10.0, rel=0.1)
    assert idle.error is not None
    assert idle.error < 0.2
    assert play.sessions.status()[:3] == (1, 0, 0)


def test_requests_that_run_beside_each_other_teach_no_gap() -> None:
    play = Play()
    first = play.begin(A, 0, session="x")
    second = play.begin(A + B, 0.5, session="x")
    assert play.sessions.status().running == 1
    assert play.end(first) is None
    assert play.sessions._returns.predict("s0", Stop.UNKNOWN).seconds is None
    idle = play.end(second)
    assert idle is not None
    assert idle.running == 0
    assert play.sessions.status().running == 0


def test_a_try_on_another_engine_is_no_return() -> None:
    play = Play()
    failed = play.begin(A, 0, session="x")
    play.end(failed, Ending.ENGINE_LOST)
    decision = play.begin(A, 1.5, engine=E1, tried=(E0,), session="x")
    idle = play.end(decision)
    assert decision.conversation == failed.conversation
    assert idle is not None
    assert (idle.requests, idle.engine) == (1, E1)
    assert play.sessions._returns.predict("s0", Stop.UNKNOWN).seconds is None


@pytest.mark.parametrize("ending", [each for each in Ending if each is not Ending.OK])
def test_an_answer_that_failed_does_not_say_how_it_ended(ending: Ending) -> None:
    play = Play()
    idle = play.end(play.begin(A, 0), ending, stop=Stop.END_OF_TURN, tool="read")
    assert idle is not None
    assert (idle.stop, idle.tool) == (Stop.UNKNOWN, None)


@pytest.mark.parametrize("fields", [{"generates": False}, {"choices": 2}])
def test_what_is_no_conversation_has_no_session(fields: dict[str, Any]) -> None:
    play = Play()
    assert play.ask(A, 0, session="x", **fields) is None
    assert len(play.sessions) == 0


def test_a_session_that_its_client_ends_is_forgotten() -> None:
    play = Play()
    first = play.ask(A, 0, session="x")
    assert play.ask(A + B, 1, session="x", final=True) == first
    assert len(play.sessions) == 0
    assert play.ask(A + B + C, 2, session="x") != first


def test_the_sessions_that_have_been_idle_for_longest_make_room() -> None:
    play = Play(most=3)
    kept = [play.ask(letter * 64, 0, session=name) for letter, name in ((b"d", None), (b"e", "e"), (b"f", None))]
    play.ask(b"d" * 64, 1)
    play.ask(b"g" * 64, 2)
    assert [session.id for session in play.sessions] == ["s3", kept[0], kept[2]]
    assert play.sessions.status().forgotten == 1
    assert len(play.sessions._tips) == 3
    assert not play.sessions._named
    assert len(play.sessions._returns._sessions) <= 3


def test_a_name_has_at_most_so_many_sessions() -> None:
    play = Play()
    for number in range(MOST_OF_NAME + 9):
        play.ask(b"%064d" % number, number, session="x")
    assert len(play.sessions) == len(play.sessions._named["x"]) == MOST_OF_NAME


def test_a_forgotten_session_may_still_end() -> None:
    play = Play(most=1)
    running = play.begin(A, 0)
    play.begin(B, 1)
    assert play.end(running) is None
    assert play.sessions.status()[:2] == (1, 1)


def test_sessions_that_stay_away_are_forgotten() -> None:
    play = Play()
    play.ask(A, 0)
    for number in range(200):
        play.ask(b"%064d" % number, FORGET_S + 2)
    assert "s0" not in {session.id for session in play.sessions}


def test_what_an_engine_had_cached_is_lost_with_it() -> None:
    play = Play()
    play.ask(A, 0)
    play.sessions.engine_gone(E1)
    assert next(iter(play.sessions)).engine == E0
    play.sessions.engine_gone(E0)
    assert next(iter(play.sessions)).engine is None


def test_a_decision_that_another_router_made_has_no_session() -> None:
    play = Play()
    decision = replace(play.begin(A, 0), conversation=None, booking=99)
    play.sessions.dispatched(decision)
    assert play.end(decision) is None
