"""Which policies decide, kept for the next router process: a switch by PUT /policy outlives a crash of the present one.

The file is in the private folder of the processes, so a new start of the whole gateway begins with the options again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import suppress
from typing import NoReturn

from router.core.router import Router
from router.errors import ConfigError
from router.gateway.snapshot import write

log = logging.getLogger("leafcutter.processes")
LOOK_S = 0.25


def restore(router: Router, path: str) -> None:
    """Assign the policies as the last router process had them, if there was one."""
    with suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        try:
            known = json.load(file)
            router.assign(known["split"], known["shadow"])
        except (ValueError, KeyError, ConfigError) as error:
            log.error("the policies of the last router process are lost: %s", error)


async def keep(router: Router, path: str) -> NoReturn:
    """Write down every change of the assignment, until this task is cancelled."""
    known = _take(router)
    while True:
        await asyncio.sleep(LOOK_S)
        if (present := _take(router)) != known:
            known = present
            try:
                await asyncio.to_thread(write, path, present)
            except OSError as error:
                log.error("the policies could not be kept for the next router process: %s", error)


def _take(router: Router) -> dict[str, object]:
    arms = router.status().arms
    split = {arm.policy: arm.share for arm in arms if arm.share}
    return {"split": split, "shadow": [arm.policy for arm in arms if not arm.share]}
