"""The addresses of engines: what is a base URL, and which of them are one server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.worker_url import address_of, base_url, base_urls, check_address, split_address
from router.errors import ConfigError

SAME = [
    ["http://h", "HTTP://H/", "http://h:80", "http://h:080/", "http://h:"],
    ["https://h:443", "https://H"],
    ["http://[::1]:8000", "http://[0:0:0:0:0:0:0:1]:8000/", "http://[0000::0001]:8000"],
    ["http://[fe80::1%eth0]", "http://[FE80:0::1%eth0]:80"],
    ["http://127.0.0.1:8000", "http://127.0.0.1:8000/"],
    ["http://bücher:1", "http://BÜCHER:1", "http://xn--bcher-kva:1"],
]


@pytest.mark.parametrize("spellings", SAME)
def test_one_server_has_one_spelling(spellings: list[str]) -> None:
    assert len({base_url(text) for text in spellings}) == 1
    assert base_url(base_url(spellings[0])) == base_url(spellings[0])
    with pytest.raises(ConfigError, match="every engine once") as caught:
        base_urls(["http://another", *spellings])
    assert (caught.value.key, caught.value.value) == ("worker_urls", spellings[1])
    assert spellings[0] in caught.value.expected


def test_different_servers_stay_apart() -> None:
    urls = [
        "http://h",
        "https://h",
        "http://h:8000",
        "http://h.",
        "http://[::1]",
        "http://127.0.0.1",
        "http://localhost",
    ]
    assert base_urls(urls) == urls


def test_a_user_in_the_url_stays_and_makes_no_other_server() -> None:
    assert base_url("http://Me:Secret@H:80/") == "http://Me:Secret@h"
    with pytest.raises(ConfigError, match="every engine once"):
        base_urls(["http://h", "http://me:secret@h"])


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "h",
            "127.0.0.1:8000",
            "ftp://h",
            "http://",
            "http:///x",
            "//h",
            "http://h/v1",
            "http://h?",
            "http://h?a",
        ),
        *("http://h#", "http://h#1", "http://h:0", "http://h:65536", "http://h:-1", "http://h:x", "http://[::1"),
        *("http://[::g]", "http://[]", "http://a b", " http://h", "http://h\n", "http://h\t", "http://h\r\nx: y"),
        *("http://h\0", "http://h\ud800", "http://a%00b", "http://a\\b", "http://a|b", "http://" + "a" * 64),
        *("http://" + "a." * 600, "http://..", "http://@", "http://me@"),
    ],
)
def test_what_is_no_base_url_is_refused_with_its_key_and_value(text: str) -> None:
    with pytest.raises(ConfigError, match="a base URL such as") as caught:
        base_url(text, "url")
    assert caught.value.key == "url"
    assert text.startswith(str(caught.value.value))


@given(st.text() | st.builds(lambda a, b: f"http://{a}:{b}", st.text(), st.text()))
def test_any_text_is_a_base_url_or_refused(text: str) -> None:
    try:
        url = base_url(text)
    except ConfigError:
        return
    assert base_url(url) == url
    check_address(address_of(url, 3))


def test_an_address_is_a_base_url_and_perhaps_an_index() -> None:
    assert split_address("http://h:1") == ("http://h:1", None)
    assert split_address(address_of("http://h:1", 12)) == ("http://h:1", 12)
    for bad in ("http://h#", "http://h#-1", "http://h#1#2", "http://h#٣", "http://h#12345", "HTTP://h", "http://h/#1"):
        with pytest.raises(ConfigError):
            check_address(bad)
