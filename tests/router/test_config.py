"""The gateway's options, and the file in configs/ that lists them."""

from pathlib import Path

import pytest
import yaml

from router.cli import configuration
from router.cli.flags import MOST_USED
from router.cli.main import load, main, parser
from router.config import Config, UpConfig, configure
from router.errors import ConfigError
from router.options import build, options_of
from router.policies.base import NoOptions
from router.policies.table import TABLE

ROOT = Path(__file__).parents[2]


def test_the_files_that_list_the_options_are_those_of_the_code() -> None:
    """After a change that is meant: python -m router.cli.configuration."""
    assert (ROOT / "configs" / "gateway.yaml").read_text() == configuration.yaml_text()
    assert (ROOT / "docs" / "configuration.md").read_text() == configuration.markdown_text()


def test_options_of_a_policy_begin_with_its_name_and_those_for_studies_are_no_flags() -> None:
    found = {option.name: option for option in options_of(Config)}
    policies = [option for option in found.values() if option.path[0] == "policies"]
    assert {option.path[1] for option in policies} == {
        name for name, policy in TABLE.items() if policy.Options is not NoOptions and name != "lbgr_paper"
    }
    assert all(option.name == f"{option.path[1]}_{option.path[2]}" for option in policies)
    assert not [name for name in found if name.startswith("lbgr_paper")]
    assert configure(lbgr_paper_decay=0.5).policies.lbgr_paper.decay == 0.5


@pytest.mark.parametrize(
    ("old", "value", "path"),
    [
        ("ledger_decisions", 5, ("routing", "decision_log_size")),
        ("cache_threshold", 0.9, ("policies", "cache_aware", "cache_threshold")),
        ("balance_abs_threshold", 9, ("policies", "cache_aware", "balance_abs_threshold")),
        ("max_tree_size", 7, ("policies", "cache_aware", "max_tree_size")),
    ],
)
def test_options_keep_their_older_names(old: str, value: float, path: tuple[str, ...]) -> None:
    found: object = load(Config, parser().parse_args(["serve", "--" + old.replace("_", "-"), str(value)]), {})
    assert found == load(Config, parser().parse_args(["serve"]), {f"LEAFCUTTER_{old.upper()}": str(value)})
    for name in path:
        found = getattr(found, name)
    assert found == value


@pytest.mark.parametrize(("command", "spec"), [("serve", Config), ("up", UpConfig)])
def test_help_shows_the_most_used_first_and_the_others_by_their_groups(
    command: str, spec: type[Config], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args([command, "--help"])
    text = capsys.readouterr().out
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    groups = dict.fromkeys(o.group for o in options_of(spec) if o.name not in MOST_USED[spec])
    assert titles == ["options", "most used", *groups]
    assert len(MOST_USED[spec]) == 10
    flags = [line.split()[0].rstrip(",") for line in text.splitlines() if line.startswith("  --")]
    first = ["--" + name.replace("_", "-") for name in MOST_USED[spec]]
    assert flags[1:11] == first  # behind --config


def test_every_option_has_help_and_a_default_that_it_accepts() -> None:
    for option in options_of(UpConfig):
        assert option.help, option.name
        assert not option.help.endswith("."), option.name
    defaults = {o.name: list(o.default) if o.many else o.default for o in options_of(UpConfig)}
    assert build(UpConfig, document=defaults) == UpConfig()


def test_the_configuration_file_holds_every_option_at_its_default() -> None:
    document = yaml.safe_load((ROOT / "configs" / "gateway.yaml").read_text())
    defaults = {o.name: list(o.default) if o.many else o.default for o in options_of(Config)}
    assert document == defaults


def test_flags_environment_and_file_meet_in_one_parser(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("port: 1234\npolicy: round-robin\nworker_urls: [http://a:1]\n")
    arguments = parser().parse_args(["serve", "--config", str(file), "--worker-urls", "http://b:1", "http://c:1"])
    config = load(Config, arguments, {"LEAFCUTTER_PORT": "4321", "LEAFCUTTER_ENGINES": "3"})
    assert config == configure(port=4321, policy="round_robin", worker_urls=("http://b:1", "http://c:1"))


@pytest.mark.parametrize("words", [["lmetric,cache-aware"], ["lmetric", "cache-aware"], ["lmetric,", "cache_aware"]])
def test_shadows_are_named_with_commas_or_blanks(words: list[str]) -> None:
    config = load(Config, parser().parse_args(["serve", "--shadow", *words]), {})
    assert config.routing.shadow == ("lmetric", "cache_aware")
    assert load(Config, parser().parse_args(["serve"]), {"LEAFCUTTER_SHADOW": "lmetric,cache-aware"}) == config


def test_an_unknown_shadow_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--worker-urls", "http://a:1", "--shadow", "lmetric,fastest"]) == 2
    assert "'shadow' = 'fastest': expected a list, each one of lbgr" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["record", "serve", "up"])
def test_a_file_to_record_to_that_cannot_be_written_is_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "no" / "trace")
    urls = [] if command == "up" else ["--worker-urls", "http://127.0.0.1:1"]
    assert main([command, "--record", file, *urls]) == 2
    assert f"option 'record' = {file!r}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["- a\n- b\n", "port: [\n", "prot: 3\n"])
def test_a_bad_file_is_refused(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(text)
    assert main(["serve", "--config", str(file)]) == 2
    assert "leafcutter: option" in capsys.readouterr().err


def test_a_missing_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--config", "/nonexistent.yaml"]) == 2
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "record", "doctor"])
def test_without_engines_the_command_says_how_to_name_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    assert "--worker-urls http://127.0.0.1:8000" in capsys.readouterr().err


@pytest.mark.parametrize("urls", [[], ["ftp://a"], ["127.0.0.1:8000"], ["http://a/v1"], ["http://a:1", "http://a:1/"]])
def test_a_bad_engine_url_is_refused(urls: list[str]) -> None:
    from router.engines.discovery import engines_of

    with pytest.raises(ConfigError, match="worker_urls"):
        engines_of(urls)


def test_the_engines_environment_is_the_same_option_of_up() -> None:
    env = {"LEAFCUTTER_EVICTION": "lru", "LEAFCUTTER_STATE_HOST": "0.0.0.0"}
    assert load(UpConfig, parser().parse_args(["up"]), env).up.eviction == "lru"
    assert load(Config, parser().parse_args(["serve"]), env) == Config()


def test_options_of_up_are_no_options_of_serve() -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", "--engines", "2"])
