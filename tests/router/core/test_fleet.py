import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.fleet import Change, Fleet
from router.types import Booking, Candidate, EngineId, EngineInfo

A, B = EngineId("a"), EngineId("b")


def fleet_of(*engines: EngineId) -> tuple[Fleet, list[tuple[EngineId, Change]]]:
    heard: list[tuple[EngineId, Change]] = []
    fleet = Fleet(5000, lambda engine, change: heard.append((engine, change)))
    for engine in engines:
        fleet.add(engine)
        fleet.set_health(engine, True)
    heard.clear()
    return fleet, heard


def book(
    fleet: Fleet, engine: EngineId, now: float, *, streamed: bool = True, prompt: float = 100, hit: float = 0
) -> Booking:
    return fleet.book(
        engine, now, streamed=streamed, prompt_tokens=prompt, hit_tokens=hit, output_tokens=10, predicted_s=None
    )


def test_load_is_booked_and_given_back_once() -> None:
    fleet, _ = fleet_of(A)
    booking = book(fleet, A, 1.0, prompt=100, hit=30)
    view = fleet.view(A)
    assert (view.in_flight, view.waiting, view.waiting_tokens, view.context_tokens, view.head) == (
        1,
        1,
        70,
        100,
        booking,
    )
    assert fleet.release(booking.serial, 2.0, answered=True) is not None
    assert fleet.release(booking.serial, 3.0, answered=True) is None
    view = fleet.view(A)
    assert (view.in_flight, view.waiting, view.waiting_tokens, view.context_tokens, view.head) == (0, 0, 0, 0, None)


def test_views_are_frozen_moments() -> None:
    fleet, _ = fleet_of(A)
    before = fleet.view(A)
    book(fleet, A, 1.0)
    assert before.in_flight == 0
    with pytest.raises(AttributeError):
        before.in_flight = 7  # type: ignore[misc]


def test_a_first_token_leaves_the_queue_once() -> None:
    fleet, _ = fleet_of(A)
    first, second = book(fleet, A, 1.0), book(fleet, A, 1.5)
    assert fleet.first_token(first.serial, 2.0) == first
    assert fleet.first_token(first.serial, 2.1) is None
    view = fleet.view(A)
    assert (view.in_flight, view.waiting, view.waiting_tokens, view.head) == (2, 1, 100, second)
    assert view.head_since_s == 2.0


def test_unstreamed_requests_never_wait_for_a_first_token() -> None:
    fleet, _ = fleet_of(A)
    booking = book(fleet, A, 1.0, streamed=False)
    assert fleet.first_token(booking.serial, 2.0) is None
    view = fleet.view(A)
    assert (view.in_flight, view.waiting, view.oldest_unstreamed) == (1, 0, booking)
    assert view.silent_since_s == 1.0
    other = book(fleet, A, 3.0)
    fleet.first_token(other.serial, 4.0)
    assert fleet.view(A).silent_since_s == 4.0
    fleet.release(other.serial, 5.0, answered=False)
    assert fleet.view(A).silent_since_s == 4.0
    fleet.release(book(fleet, A, 6.0).serial, 7.0, answered=True)
    assert fleet.view(A).silent_since_s == 7.0


def test_a_stay_tells_the_mean_company_after_the_first_token() -> None:
    fleet, _ = fleet_of(A)
    mine = book(fleet, A, 0.0, prompt=50)
    fleet.first_token(mine.serial, 1.0)
    other = book(fleet, A, 2.0, prompt=300)
    fleet.release(other.serial, 4.0, answered=True)
    released = fleet.release(mine.serial, 5.0, answered=True)
    assert released is not None
    # of the four seconds from 1 to 5 another request was there for two
    assert (released.first_token_s, released.done_s) == (1.0, 5.0)
    assert (released.other_requests, released.other_context_tokens) == pytest.approx((0.5, 150.0))


def test_health_decides_who_is_seen_and_never_touches_load() -> None:
    fleet, heard = fleet_of(A, B)
    book(fleet, A, 1.0)
    fleet.set_health(A, False)
    assert [view.engine for view in fleet.views()] == [B]
    assert fleet.view(A).in_flight == 1
    fleet.set_health(A, True)
    fleet.set_health(A, True)
    assert heard == [(A, Change.RETURNED)]
    assert fleet.view(A).in_flight == 1


def test_a_removed_engine_takes_its_load_with_it() -> None:
    fleet, heard = fleet_of(A)
    booking = book(fleet, A, 1.0)
    fleet.remove(A)
    fleet.remove(A)
    fleet.add(A)
    assert fleet.release(booking.serial, 2.0, answered=False) is not None
    assert (fleet.view(A).in_flight, fleet.in_flight, fleet.ids()) == (0, 0, (A,))
    assert heard == [(A, Change.REMOVED), (A, Change.ADDED)]
    assert not fleet.healthy(A)


def test_capacity_is_what_the_engine_tells_or_the_default() -> None:
    fleet, heard = fleet_of(A)
    assert fleet.view(A).capacity_tokens == 5000
    fleet.set_info(A, EngineInfo(block_size=16, capacity_blocks=100))
    fleet.set_info(A, EngineInfo(block_size=16, capacity_blocks=100, vllm_version="1"))
    assert fleet.view(A).capacity_tokens == 1600
    assert heard == [(A, Change.RESIZED)]


def test_what_all_serve_is_what_the_healthy_ones_that_tell_have_in_common() -> None:
    fleet, _ = fleet_of(A, B)
    assert fleet.all_serve("m")  # as far as they tell
    fleet.set_info(A, EngineInfo(("m", "n")))
    assert (fleet.all_serve("m"), fleet.all_serve("o")) == (True, False)
    fleet.set_info(B, EngineInfo(("m",)))
    assert (fleet.all_serve("m"), fleet.all_serve("n")) == (True, False)
    fleet.set_health(B, False)
    assert fleet.all_serve("n")
    fleet.remove(A)
    assert fleet.all_serve("o")


def test_a_list_of_candidates_is_the_callers() -> None:
    fleet, _ = fleet_of(A, B)
    candidates, _ = fleet.candidates()
    candidates[0] = Candidate(candidates[0].view, 16.0)
    book(fleet, B, 1.0)
    assert [hit for _, hit in fleet.candidates()[0]] == [0.0, 0.0]
    assert [view.in_flight for view, _ in candidates] == [0, 0]
    fleet.set_info(A, EngineInfo(order="rlt"))
    assert [(view.info.order, view.in_flight) for view, _ in fleet.candidates()[0]] == [("rlt", 0), (None, 1)]


def test_unknown_engines_are_errors() -> None:
    fleet, _ = fleet_of()
    for use in (fleet.view, fleet.healthy, lambda e: fleet.set_health(e, True), lambda e: book(fleet, e, 0.0)):
        with pytest.raises(KeyError):
            use(A)


@given(st.lists(st.tuples(st.sampled_from("bfrhu"), st.integers(0, 30), st.booleans()), max_size=120))
def test_load_equals_the_open_bookings_whatever_happens(steps: list[tuple[str, int, bool]]) -> None:
    fleet, _ = fleet_of(A, B)
    open_: dict[int, Booking] = {}
    started: set[int] = set()
    for n, (event, which, flag) in enumerate(steps):
        engine = A if flag else B
        if event == "b":
            booking = book(fleet, engine, float(n), streamed=which % 2 == 0, prompt=which / 7)
            open_[booking.serial] = booking
        elif event == "f" and fleet.first_token(which, float(n)):
            started.add(which)
        elif event == "r":
            assert (fleet.release(which, float(n), answered=flag) is None) == (which not in open_)
            open_.pop(which, None)
        elif event in "hu":
            fleet.set_health(engine, event == "h")
        candidates, places = fleet.candidates()
        assert candidates == [Candidate(fleet.view(e), 0.0) for e in (A, B) if fleet.healthy(e)]
        assert all(candidates[place].view.engine == e for e, place in places.items())
        assert len(places) == len(candidates)
    for engine in (A, B):
        mine = [b for b in open_.values() if b.engine == engine]
        waiting = [b for b in mine if b.streamed and b.serial not in started]
        view = fleet.view(engine)
        assert (view.in_flight, view.waiting) == (len(mine), len(waiting))
        assert view.context_tokens == pytest.approx(sum(b.prompt_tokens for b in mine))
        assert view.waiting_tokens == pytest.approx(sum(b.miss_tokens for b in waiting))
        assert view.head == (waiting[0] if waiting else None)
