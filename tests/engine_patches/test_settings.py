import pytest

from engine_patches.errors import SettingError
from engine_patches.orders import ORDERS
from engine_patches.settings import OPTIONS, Settings, read_settings


@pytest.mark.parametrize("value", [{}, {"LEAFCUTTER_EVICTION": ""}, {"LEAFCUTTER_EVICTION": "off"}])
def test_off_is_the_default(value: dict[str, str]) -> None:
    assert read_settings(value) == Settings(order=None, seed=None, state_port=None, state_host="127.0.0.1")


def test_reads_all_of_it() -> None:
    environ = {
        "LEAFCUTTER_EVICTION": " rlt ",
        "LEAFCUTTER_EVICTION_SEED": "-7",
        "LEAFCUTTER_STATE_PORT": "19001",
        "LEAFCUTTER_STATE_HOST": "0.0.0.0",
        "LEAFCUTTER_HINT_KEY": "0123456789abcdef",
        "UNRELATED": "x",
    }
    assert read_settings(environ) == Settings("rlt", -7, 19001, "0.0.0.0", "0123456789abcdef")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LEAFCUTTER_EVICTION", "belady", f"expected one of off, {', '.join(ORDERS)}"),
        ("LEAFCUTTER_EVICTION", "RLT", "expected one of"),
        ("LEAFCUTTER_EVICTION_SEED", "seven", "expected an integer"),
        ("LEAFCUTTER_STATE_PORT", "0", "expected 1 to 65535"),
        ("LEAFCUTTER_STATE_PORT", "65536", "expected 1 to 65535"),
        ("LEAFCUTTER_STATE_PORT", "http", "expected 1 to 65535"),
    ],
)
def test_a_bad_value_names_key_value_and_what_was_expected(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingError) as raised:
        read_settings({name: value})
    assert f"{name}='{value}'" in str(raised.value)
    assert expected in str(raised.value)


def test_every_option_is_described() -> None:
    assert len({option.name for option in OPTIONS}) == len(OPTIONS)
    for option in OPTIONS:
        assert option.name.startswith("LEAFCUTTER_")
        assert option.range
        assert option.help.endswith(".")


@pytest.mark.parametrize("value", ["too short", "no text at all \n or so", "a key with an \u20ac in it"])
def test_a_bad_key_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(SettingError) as raised:
        read_settings({"LEAFCUTTER_HINT_KEY": value})
    assert str(raised.value) == "LEAFCUTTER_HINT_KEY=...: expected at least 16 printable ASCII characters"


def test_the_key_is_in_no_text_of_the_settings() -> None:
    settings = read_settings({"LEAFCUTTER_HINT_KEY": "0123456789abcdef"})
    assert settings.hint_key == "0123456789abcdef"
    assert "0123456789abcdef" not in f"{settings} {settings!r}"
