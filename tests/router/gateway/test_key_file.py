from __future__ import annotations

from pathlib import Path

import pytest

from router.config import configure
from router.errors import ConfigError
from router.gateway.access import Access
from router.gateway.key_file import MOST_NAMES, KeyFile, decode, encode, parse

HASH = "sha256:" + "0123456789abcdef" * 4
OTHER = "sha256:" + "fedcba9876543210" * 4


def test_an_entry_may_say_everything_or_little() -> None:
    first, second = parse(
        f"- {{name: a.b-c_1, key: ['{HASH}', '{OTHER}'], group: g, weight: 2, requests_per_minute: 3,"
        f" tokens_per_minute: 4, concurrency: 5}}\n- name: b\n  key: {HASH}\n",
        "here",
    )
    assert (first.name, first.tenant, first.weight, len(first.digests)) == ("a.b-c_1", ("group", "g"), 2.0, 2)
    assert (first.requests_per_minute, first.tokens_per_minute, first.concurrency) == (3, 4, 5)
    assert (second.tenant, second.weight, second.concurrency) == (("name", "b"), 1.0, None)
    assert second.digests == [bytes.fromhex("0123456789abcdef" * 4)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "5",
        "- s3cret",
        "- [s3cret]",
        "- {name: a}",
        f"- {{key: '{HASH}'}}",
        "- {name: a, key: s3cret}",
        "- {name: a, key: [s3cret]}",
        "- {name: a, key: []}",
        "- {name: a, key: 'sha256:s3cret'}",
        f"- {{name: a, key: '{HASH.upper()}'}}",
        f"- {{name: a, key: '{HASH}0'}}",
        f"- {{name: a, key: '{HASH}\\n'}}",
        f"- {{name: '', key: '{HASH}'}}",
        f"- {{name: 'a b', key: '{HASH}'}}",
        f"- {{name: admin, key: '{HASH}'}}",
        f"- {{name: {'a' * 65}, key: '{HASH}'}}",
        f"- {{name: a, key: '{HASH}'}}\n- {{name: a, key: '{OTHER}'}}",
        f"- {{name: a, key: '{HASH}', weight: 0}}",
        f"- {{name: a, key: '{HASH}', weight: .nan}}",
        f"- {{name: a, key: '{HASH}', concurrency: 0}}",
        f"- {{name: a, key: '{HASH}', concurrency: 1.5}}",
        f"- {{name: a, key: '{HASH}', requests_per_minute: -1}}",
        f"- {{name: a, key: '{HASH}', tokens_per_minute: s3cret}}",
        f"- {{name: a, key: '{HASH}', request_per_minute: 1}}",
        "- {name: a, key: s3cret",
        "&a [*a]",
        "\x00s3cret",
        "!!python/object/apply:os.system [s3cret]",
        "[" * 10_000,
    ],
)
def test_a_bad_file_is_refused_in_words_that_show_no_key(text: str) -> None:
    with pytest.raises(ConfigError, match="client_keys") as caught:
        parse(text, "here")
    assert "s3cret" not in str(caught.value)
    assert caught.value.value == "here"


def test_the_same_key_cannot_be_two_clients() -> None:
    inline = f"[{{name: a, key: '{HASH}'}}, {{name: b, key: '{HASH}'}}]"
    with pytest.raises(ConfigError, match="'a' and 'b' have the same"):
        Access.of(configure(client_keys=inline).server)


def test_a_name_keeps_its_row(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"- {{name: a, key: '{HASH}'}}\n- {{name: b, key: '{OTHER}'}}")
    path.chmod(0o600)
    file = KeyFile(str(path))
    assert [(entry.name, row) for entry, row in file.read()] == [("a", 0), ("b", 1)]
    path.write_text(f"- {{name: c, key: '{HASH}'}}\n- {{name: b, key: '{OTHER}'}}")
    entries = file.read()
    assert [(entry.name, row) for entry, row in entries] == [("c", 2), ("b", 1)]
    assert decode(encode(entries)) == entries


def test_there_are_not_more_names_than_rows(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n".join(f"- {{name: n{n}, key: 'sha256:{n:064x}'}}" for n in range(MOST_NAMES + 1)))
    with pytest.raises(ConfigError, match=f"at most {MOST_NAMES} names"):
        KeyFile(str(path)).read()


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o660, True)])
def test_a_file_that_others_can_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warned: bool
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"- {{name: a, key: '{HASH}'}}")
    path.chmod(mode)
    KeyFile(str(path)).read()
    assert ("can be read, or changed, by others" in caplog.text) == warned


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent", Path("/dev/null")):
        with pytest.raises(ConfigError, match="client_keys"):
            KeyFile(str(path)).read()
