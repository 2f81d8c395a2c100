"""Options: one declaration, three sources, and clear refusals."""

from dataclasses import dataclass

import pytest

from router.errors import ConfigError
from router.options import build, option, options_of


@dataclass(frozen=True)
class Sample:
    port: int = option(1, "a port", unit="TCP port", low=0, high=100)
    rate: float = option(0.5, "a rate", low=0)
    name: str | None = option(None, "a name")
    urls: tuple[str, ...] = option((), "places")
    mode: str = option("least_loaded", "a mode", among=("least_loaded", "lbgr"))
    on: bool = option(True, "a switch")


def test_defaults_then_document_then_environment_then_flags() -> None:
    assert build(Sample) == Sample()
    document = {"port": 2, "rate": 1, "urls": ["a", "b"]}
    built = build(Sample, document=document, env={"LEAFCUTTER_PORT": "3", "PATH": "/bin"}, flags={"rate": "2.5"})
    assert built == Sample(port=3, rate=2.5, urls=("a", "b"))


def test_text_forms() -> None:
    built = build(Sample, env={"LEAFCUTTER_URLS": "a, b c", "LEAFCUTTER_ON": "no", "LEAFCUTTER_NAME": ""})
    assert built == Sample(urls=("a", "b", "c"), on=False, name=None)


def test_kebab_spelling_of_keys_and_choices() -> None:
    assert build(Sample, document={"mode": "least-loaded"}).mode == "least_loaded"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("port", 101, "an integer from 0 to 100 (TCP port)"),
        ("port", "x", "an integer from 0 to 100 (TCP port)"),
        ("port", 1.5, "an integer"),
        ("port", True, "an integer"),
        ("port", None, "an integer"),
        ("rate", -1, "a number of at least 0"),
        ("rate", "nan", "a number"),
        ("mode", "random", "one of least_loaded, lbgr"),
        ("on", "maybe", "true or false"),
        ("urls", 3, "a list, each text"),
        ("urls", [["a"]], "a list, each text"),
    ],
)
def test_a_bad_value_is_refused_with_key_value_and_expectation(key: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Sample, document={key: value})
    assert caught.value.key == key
    assert caught.value.value == value or caught.value.value in value  # type: ignore[operator]
    assert expected in str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="'prot' = 3: expected a known option; did you mean 'port'"):
        build(Sample, document={"prot": 3})
    with pytest.raises(ConfigError, match=r"LEAFCUTTER_PROT.*did you mean 'LEAFCUTTER_PORT'"):
        build(Sample, env={"LEAFCUTTER_PROT": "3"})


def test_the_engines_own_environment_passes() -> None:
    assert build(Sample, env={"LEAFCUTTER_EVICTION": "rlt", "LEAFCUTTER_STATE_PORT": "9000"}) == Sample()


def test_every_option_says_what_it_is() -> None:
    for found in options_of(Sample):
        assert found.help
        assert found.flag == f"--{found.name}"
        assert found.expected
