from __future__ import annotations

import pytest

from router.errors import ConfigError
from router.gateway.apis import TABLE
from router.gateway.routes import OpenedPaths, read_aliases

RESPONSE, RENDER = "/v1/responses/{response_id}", "/v1/chat/completions/render"
OPENED = OpenedPaths([RESPONSE, RENDER, "/version"])


@pytest.mark.parametrize(
    ("method", "path", "template"),
    [
        ("GET", "/v1/responses/resp_1", RESPONSE),
        ("DELETE", "/v1/responses/a.b:c", RESPONSE),
        ("POST", RENDER, RENDER),
        ("GET", "/version", "/version"),
        ("HEAD", "/version", None),
        ("CONNECT", "/version", None),
        ("GET", "/version/", None),
        ("GET", "//version", None),
        ("GET", "/Version", None),
        ("GET", "/versions", None),
        ("GET", "/%76ersion", None),
        ("GET", "/v1/responses", None),
        ("GET", "/v1/responses/", None),
        ("GET", "/v1/responses/.", None),
        ("GET", "/v1/responses/..", None),
        ("GET", "/v1/responses/...", RESPONSE),
        ("GET", "/v1/responses/%2e%2e", None),
        ("GET", "/v1/responses/a%2fb", None),
        ("GET", "/v1/responses/a/b", None),
        ("GET", "/v1/responses/a\n", None),
        ("GET", "/v1/responses/a;b", None),
        ("POST", "/sleep", None),
        ("GET", "*", None),
        ("GET", "", None),
    ],
)
def test_only_what_was_opened_is_found(method: str, path: str, template: str | None) -> None:
    assert OPENED.find(method, path.encode()) == template
    assert OpenedPaths(()).find(method, path.encode()) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("version", "a path such as"),
        ("/", "a path such as"),
        ("/version/", "a path such as"),
        ("/a/../sleep", "a path such as"),
        ("/a b", "a path such as"),
        ("/a/{x}y", "a path such as"),
        ("/a?b=1", "a path such as"),
        ("/v1/messages", "open already"),
        ("/{any}", "answer itself"),
        ("/v1/{any}", "answer itself"),
        ("/{any}/sleep", "answer itself"),
        ("/health", "answer itself"),
        ("/v1/models/{model}", "answer itself"),
        ("/workers", "answer itself"),
        ("/sleep", "does not manage engines"),
        ("/v1/load_lora_adapter", "does not manage engines"),
        ("/fault_tolerance/apply", "does not manage engines"),
        ("/metrics", "does not manage engines"),
        ("/v1/realtime", "does not manage engines"),
    ],
)
def test_paths_that_stay_closed(path: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        OpenedPaths([path])


def test_the_table_has_only_paths_that_open_none_besides() -> None:
    assert all(route.startswith("/") and not route.endswith("/") and "{" not in route for route in TABLE)


def test_aliases_are_pairs() -> None:
    assert read_aliases(["gpt-4o=org/name", "a=b=c"]) == {"gpt-4o": "org/name", "a": "b=c"}


@pytest.mark.parametrize("pairs", [["a"], ["=b"], ["a="], ["a=b", "a=c"], ["a=b", "b=c"], ["a=a"]])
def test_other_aliases_are_refused(pairs: list[str]) -> None:
    with pytest.raises(ConfigError, match="model_alias"):
        read_aliases(pairs)
