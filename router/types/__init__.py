"""The frozen nouns every layer speaks of, without behaviour beyond derived properties.

`request`: what a client asked. `engine`: what is known of an engine, and the load booked on it. `scores`: what a policy
makes of the candidates. `decision`: where a request goes, why, and what came of it.

Units: times are float seconds on one monotonic clock that the caller owns; lengths are tokens unless a name says
`units`, which are bytes of text or token ids, whichever the request's chain is made of.
"""

from router.types.decision import (
    NO_EXPECTATION,
    Decision,
    Ending,
    Outcome,
    PrefixExpectation,
    ShadowChoice,
)
from router.types.engine import Booking, Candidate, EngineId, EngineInfo, EngineView, ReleasedBooking
from router.types.request import BlockKey, ParsedRequest, Prompt
from router.types.scores import PLAIN, Score, Scores, Unit

__all__ = [
    "NO_EXPECTATION",
    "PLAIN",
    "BlockKey",
    "Booking",
    "Candidate",
    "Decision",
    "Ending",
    "EngineId",
    "EngineInfo",
    "EngineView",
    "Outcome",
    "ParsedRequest",
    "PrefixExpectation",
    "Prompt",
    "ReleasedBooking",
    "Score",
    "Scores",
    "ShadowChoice",
    "Unit",
]
