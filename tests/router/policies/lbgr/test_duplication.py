import pytest

from router.errors import SnapshotError
from router.policies.lbgr.duplication import Duplication
from router.saved_state import SavedFields
from router.types import Candidate, EngineId, EngineInfo, EngineView


def fleet(*loads: tuple[int, int, int]) -> list[Candidate]:
    """Of each engine: requests in flight, those without a first token, unstreamed ones."""
    return [
        Candidate(EngineView(EngineId(f"e{n}"), EngineInfo(), flight, waiting, unstreamed=unstreamed), 0.0)
        for n, (flight, waiting, unstreamed) in enumerate(loads)
    ]


def test_the_price_is_of_those_who_wait_not_of_those_who_decode() -> None:
    price = Duplication().price
    assert price(fleet((0, 0, 0))) == price(fleet((30, 0, 0), (9, 0, 0))) == 0.0
    assert price(fleet((30, 3, 0), (1, 0, 0))) == pytest.approx(0.3 * 2 * 1.5)


def test_it_is_bounded() -> None:
    assert Duplication().price(fleet((900, 900, 0))) == pytest.approx(0.3 * 20)


def test_it_follows_how_much_of_the_traffic_repeats() -> None:
    duplication = Duplication()
    for _ in range(1000):
        duplication.dispatched(0.75)
    assert duplication.price(fleet((1, 1, 0))) == pytest.approx(0.75 * 2, rel=1e-3)
    for _ in range(1000):
        duplication.dispatched(0.0)
    assert duplication.price(fleet((1, 1, 0))) < 1e-4


@pytest.mark.parametrize(("decode_ms", "hidden"), [(0, 0.5), (600, 0.5), (950, 0.2), (1000, 0), (1500, 0)])
def test_unstreamed_ones_wait_for_what_decoding_leaves_of_their_time(decode_ms: float, hidden: float) -> None:
    duplication = Duplication()
    assert duplication.price(fleet((4, 0, 4))) == pytest.approx(0.3 * 2 * 0.5 * 4)  # of the start
    for _ in range(2000):
        duplication.answered(decode_ms, 1000.0)
    assert duplication.price(fleet((4, 0, 4))) == pytest.approx(0.3 * 2 * hidden * 4, abs=1e-6)
    assert duplication.price(fleet((5, 1, 4))) == pytest.approx(0.3 * 2 * (1 + hidden * 4), abs=1e-6)


def test_an_answer_that_took_no_time_teaches_a_number() -> None:
    duplication = Duplication()
    duplication.answered(0.0, 0.0)
    assert duplication.describe() == {"repeated": 0.3, "queued": 0.505}


def test_what_was_learned_survives() -> None:
    taught, fresh = Duplication(), Duplication()
    taught.dispatched(1.0)
    taught.answered(9.0, 10.0)
    fresh.load(SavedFields(taught.dump(), "duplication"))
    assert fresh.dump() == taught.dump() != Duplication().dump()


@pytest.mark.parametrize("bad", [{"repeated": 1.5}, {"queued": -0.1}, {"queued": None}, {"repeated": "much"}])
def test_what_does_not_fit_is_refused_whole(bad: dict[str, object]) -> None:
    duplication = Duplication()
    with pytest.raises(SnapshotError, match=f"duplication.{next(iter(bad))}"):
        duplication.load(SavedFields({"repeated": 0.5, "queued": 0.1, **bad}, "duplication"))
    assert duplication.dump() == Duplication().dump()
