"""How an answer ended for its reader, which tells much of when the next request of its session comes."""

from __future__ import annotations

from enum import IntEnum


class Stop(IntEnum):
    """The kind of an answer's end. The numbers are those that traces use."""

    UNKNOWN = 0
    """Nobody saw, or the answer was cut off by an error or its client."""
    TOOL_CALL = 1
    """The model called one or more tools, whose results the client is going to send."""
    END_OF_TURN = 2
    """The model said all that it had to say; a person reads it."""
    LENGTH = 3
    """The answer reached its bound."""

    @property
    def word(self) -> str:
        """As people read it."""
        return self.name.lower()
