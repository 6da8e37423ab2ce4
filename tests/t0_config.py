"""Configuration: who wins, what is refused, and that the refusal is clear."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everfold import config
from everfold.errors import EverfoldError, Kind

ROOT = Path(__file__).resolve().parent.parent


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(tmp_path):
    file = tmp_path / "everfold.conf"
    file.write_text("# a comment\nNODES=5\nREPLICAS=5\nREGISTRATION='open'\n\nMAX_FILE_SIZE=1G\n")

    settings = config.load({"NODES": "7"}, {"NODES": "6", "REPLICAS": "6"}, file)

    assert (settings.nodes, settings.replicas) == (7, 6)
    assert settings.registration == "open"
    assert settings.max_file_size == 1 << 30
    assert settings.default_quota == 0


def test_without_anything_said_there_are_three_nodes_and_two_copies():
    settings = config.load({}, {})

    assert (settings.nodes, settings.replicas, settings.min_replicas) == (3, 2, 2)
    assert settings.registration == "admin"
    assert settings.allowed_extensions == frozenset()


def test_one_copy_is_enough_to_count_when_only_one_is_wanted():
    assert config.load({"REPLICAS": "1"}, {}).min_replicas == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("REPLICAS", "0", "from 1 to 16"),
        ("REPLICAS", "two", "from 1 to 16"),
        ("NODES", "-1", "from 1 to 64"),
        ("MAX_FILE_SIZE", "1 parsec", "size"),
        ("DATABASE_URL", "mysql://localhost/x", "postgresql://"),
        ("REGISTRATION", "maybe", "open, invite, admin"),
        ("JWT_SECRET_KEY", "short", "at least 16 characters"),
        ("EVERFOLD_ADMIN_PASSWORD", "short", "at least 8 characters"),
        ("ALLOWED_EXTENSIONS", "a/b", "list"),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_the_reason(name, value, said):
    with pytest.raises(EverfoldError) as caught:
        config.load({}, {name: value})

    assert caught.value.kind is Kind.INVALID
    assert caught.value.subject == name
    assert said in str(caught.value)


def test_a_refused_secret_is_not_repeated_in_the_message():
    with pytest.raises(EverfoldError) as caught:
        config.load({}, {"SECRET_KEY": "hunter2"})

    assert "hunter2" not in str(caught.value)


def test_more_copies_before_a_write_counts_than_copies_is_refused():
    with pytest.raises(EverfoldError, match="MIN_REPLICAS"):
        config.load({"MIN_REPLICAS": "3", "REPLICAS": "2"}, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [("REPLICA=2\n", "line 1: unknown setting"), ("\njust words\n", "line 2: not NAME=value")],
)
def test_a_bad_line_of_the_file_is_named(tmp_path, text, said):
    file = tmp_path / "conf"
    file.write_text(text)

    with pytest.raises(EverfoldError, match=said):
        config.load({}, {}, file)


def test_a_file_that_is_not_there_is_an_error_not_a_default(tmp_path):
    with pytest.raises(EverfoldError, match="cannot read it"):
        config.load({}, {config.CONFIG_FILE: "ignored by load"}, tmp_path / "none")


def test_a_server_gets_its_settings_from_its_flags_and_the_named_file(tmp_path):
    file = tmp_path / "conf"
    file.write_text("NODES=4\nREPLICAS=3\n")
    parser = argparse.ArgumentParser()
    config.add_flags(parser, "replicas", "database_url")

    args = parser.parse_args(["--replicas", "4", "--config", str(file)])
    settings = config.from_args(args, {"DATABASE_URL": "sqlite:////tmp/x.db"})

    assert (settings.replicas, settings.nodes) == (4, 4)
    assert settings.database_url == "sqlite:////tmp/x.db"


def test_the_example_file_is_valid_and_names_every_setting():
    example = (ROOT / ".env.example").read_text()

    for setting in config.SETTINGS:
        assert f"#{setting.name}=" in example
    assert config.read_file(ROOT / ".env.example") == {}


@given(st.integers(0, 1 << 50), st.sampled_from(["", "K", "m", "GiB", "tb", " kb"]))
def test_sizes_are_read_in_powers_of_1024(number, unit):
    power = " kmgt".index(unit.strip()[:1].lower() or " ")

    assert config.parse_size(f"{number}{unit}") == number << (10 * power)


@given(st.text(max_size=20))
def test_no_text_makes_the_parser_of_sizes_fail_in_another_way(text):
    try:
        assert config.parse_size(text) >= 0
    except ValueError as err:
        assert "size" in str(err)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_the_password_that_everybody_knows_is_offered_on_this_machine_only(host):
    assert config.demo(config.Settings(), host).admin_password == "admin123"
    assert config.demo(config.Settings(admin_password="my own choice"), host).admin_password == (
        "my own choice"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_where_others_could_come_it_is_refused(host):
    with pytest.raises(EverfoldError) as refused:
        config.demo(config.Settings(), host)

    assert refused.value.kind is Kind.INVALID
