from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.decision_place import Place


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        place = Place(stack, str(tmp_path / "decisions"))
        await place.serve()
        yield place
        await place.stop()
