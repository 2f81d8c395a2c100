"""Options: one declaration, three sources, and clear refusals."""

from dataclasses import dataclass

import pytest

from router.errors import ConfigError
from router.options import build, group, option, options_of


@dataclass(frozen=True)
class Sample:
    port: int = option(1, "a port", unit="TCP port", low=0, high=100)
    rate: float = option(0.5, "a rate", low=0)
    name: str | None = option(None, "a name")
    urls: tuple[str, ...] = option((), "places")
    mode: str = option("least_loaded", "a mode", among=("least_loaded", "lbgr"))
    on: bool = option(True, "a switch")
    count: int | str = option(1, "a count", low=1, high=9, words=("auto",))


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
        ("count", "most", "an integer from 1 to 9 or auto"),
        ("count", 10, "an integer from 1 to 9 or auto"),
        ("count", None, "an integer from 1 to 9 or auto"),
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


def test_a_number_may_have_words_beside_it() -> None:
    assert [build(Sample, flags={"count": value}).count for value in ("auto", "3", 4)] == ["auto", 3, 4]


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
        assert found.flags == [f"--{found.name}"]
        assert found.expected


@dataclass(frozen=True)
class Inner:
    weight: float = option(1.0, "a weight", low=0, aliases=("old_weight",))
    depth: int = option(3, "a depth of studies", study=True)


@dataclass(frozen=True)
class Tree:
    sample: Sample = group(Sample, "sample")
    inner: Inner = group(Inner, "inner things", "inner_")


def test_a_tree_has_flat_names_with_the_prefix_of_the_group() -> None:
    found = {o.name: (o.group, o.path) for o in options_of(Tree)}
    assert found["port"] == ("sample", ("sample", "port"))
    assert found["inner_weight"] == ("inner things", ("inner", "weight"))
    built = build(Tree, document={"port": 3}, env={"LEAFCUTTER_INNER_WEIGHT": "2"}, flags={"mode": "lbgr"})
    assert built == Tree(Sample(port=3, mode="lbgr"), Inner(weight=2.0))


def test_an_older_name_is_the_same_option_everywhere() -> None:
    expected = Tree(inner=Inner(weight=2.0))
    assert build(Tree, document={"old-weight": 2}) == expected
    assert build(Tree, env={"LEAFCUTTER_OLD_WEIGHT": "2"}) == expected
    assert build(Tree, flags={"old_weight": 2}) == expected
    assert build(Tree, document={"old_weight": 1}, env={"LEAFCUTTER_INNER_WEIGHT": "2"}) == expected
    (weight,) = (o for o in options_of(Tree) if o.name == "inner_weight")
    assert weight.flags == ["--inner-weight", "--old-weight"]
    with pytest.raises(ConfigError, match="one name for one option; 'inner_weight' is given too"):
        build(Tree, document={"inner_weight": 1, "old_weight": 2})


def test_an_option_for_studies_is_unknown_to_everyone_else() -> None:
    assert build(Tree, flags={"inner_depth": 9}, study=True).inner.depth == 9
    assert "inner_depth" not in {o.name for o in options_of(Tree)}
    with pytest.raises(ConfigError, match="a known option"):
        build(Tree, document={"inner_depth": 9})
    with pytest.raises(ConfigError, match="a known option"):
        build(Tree, env={"LEAFCUTTER_INNER_DEPTH": "9"})
