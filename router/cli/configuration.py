"""The two files that list every option, made from the options themselves: `python -m router.cli.configuration` writes
configs/gateway.yaml and docs/configuration.md below the present folder; a test holds them to the code."""

from __future__ import annotations

import json
import textwrap
from itertools import groupby
from pathlib import Path

import yaml

from router.config import Config, UpConfig
from router.options import ENGINE_ENV, Option, options_of

WIDTH = 118

YAML_HEAD = """\
# Every option of the gateway at its default: leafcutter serve --config configs/gateway.yaml
# The same names work as flags (--worker-urls) and in the environment (LEAFCUTTER_WORKER_URLS); flags win.
"""

MARKDOWN_HEAD = """\
# Configuration

One list for flags, YAML and environment. The option `worker_urls` is `--worker-urls` on the command line,
`worker_urls:` in the file that `--config` names, and `LEAFCUTTER_WORKER_URLS` in the environment. A flag wins over the
environment, the environment over the file. An unknown key or a bad value stops the command with the key, the value and
what was expected. Older names of an option still work. Of a file that changes while the gateway runs, the list of
engines takes effect ([operations](operations.md#adding-draining-and-removing-engines)).

[configs/gateway.yaml](../configs/gateway.yaml) holds every option of the gateway at its default.

This page is made from the code by `python -m router.cli.configuration`.
"""

ENGINES_HEAD = """\
## In the engines

The eviction plugin reads its settings from the environment of the engine's process: `LEAFCUTTER_EVICTION` (an order,
see [algorithms](algorithms.md); unset: stock vLLM), `LEAFCUTTER_EVICTION_SEED`, `LEAFCUTTER_STATE_PORT` and
`LEAFCUTTER_STATE_HOST` (where its state is read; the gateway expects the engine's port plus `state_port_offset`).
"""


def yaml_text() -> str:
    """configs/gateway.yaml."""
    parts = [YAML_HEAD]
    for title, options in groupby(options_of(Config), key=lambda option: option.group):
        parts.append(f"\n# --- {title}\n")
        for option in options:
            words = f"{_sentence(option.help)} {_sentence(option.expected)}"
            parts.append("\n" + textwrap.fill(words, WIDTH, initial_indent="# ", subsequent_indent="# "))
            parts.append(f"\n{option.name}: {_yaml_value(option)}\n")
    return "".join(parts)


def markdown_text() -> str:
    """docs/configuration.md."""
    assert set(ENGINE_ENV) <= set(_code_words(ENGINES_HEAD)), "the page names every variable of the plugin"
    parts = [MARKDOWN_HEAD]
    own = {option.name for option in options_of(Config)}
    parts.append("\n## Options of the gateway\n")
    parts += _tables([option for option in options_of(UpConfig) if option.name in own], "###")
    parts.append("\n## Options of leafcutter up\n\nThose of the gateway, and:\n")
    parts += _tables([option for option in options_of(UpConfig) if option.name not in own], "###")
    parts.append("\n" + ENGINES_HEAD)
    return "".join(parts)


def _tables(options: list[Option], level: str) -> list[str]:
    parts = []
    for title, members in groupby(options, key=lambda option: option.group):
        parts.append(f"\n{level} {title[0].upper()}{title[1:]}\n\n| option | default | |\n|---|---|---|\n")
        for option in members:
            words = f"{_sentence(option.help)} {_sentence(option.expected)}"
            if option.aliases:
                words += " Older name: " + ", ".join(f"`{alias}`" for alias in option.aliases) + "."
            parts.append(f"| `{option.name}` | {_default(option)} | {words.replace('|', chr(92) + '|')} |\n")
    return parts


def _default(option: Option) -> str:
    values = option.default if option.many else [option.default]
    return ", ".join(f"`{value}`" for value in values if value not in (None, "")) or "none"


def _yaml_value(option: Option) -> str:
    if option.many:
        return "[" + ", ".join(map(str, option.default)) + "]"
    return (
        yaml.safe_dump(option.default).splitlines()[0]
        if isinstance(option.default, str)
        else json.dumps(option.default)
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _code_words(text: str) -> list[str]:
    return text.split("`")[1::2]


def main() -> None:
    Path("configs/gateway.yaml").write_text(yaml_text())
    Path("docs/configuration.md").write_text(markdown_text())


if __name__ == "__main__":
    main()
