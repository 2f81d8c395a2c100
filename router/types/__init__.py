"""The data types that all layers share. They are immutable and have no behaviour beyond derived properties.

`request`: what a client asked for. `engine`: what is known of an engine, and the load booked on it. `scores`: how a
policy scores the candidates. `decision`: which engine a request goes to and why, and how the request ended. `stop`: how
an answer ended for its reader.

Units: times are float seconds on one monotonic clock that the caller owns. Lengths are tokens, unless the name says
`units`: these are bytes for a prompt of text, and token ids for a prompt of token ids.
"""

from router.types.decision import (
    NO_EXPECTATION,
    Decision,
    Ending,
    Outcome,
    Placement,
    PrefixExpectation,
    ShadowChoice,
    Telling,
)
from router.types.engine import Booking, Candidate, EngineId, EngineInfo, EngineView, ReleasedBooking, WorkerId
from router.types.request import BlockKey, ParsedRequest, Prompt
from router.types.scores import PLAIN, Score, Scores, Unit
from router.types.stop import Stop

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
    "Placement",
    "PrefixExpectation",
    "Prompt",
    "ReleasedBooking",
    "Score",
    "Scores",
    "ShadowChoice",
    "Stop",
    "Telling",
    "Unit",
    "WorkerId",
]
