"""The configuration: what wins, and what is said about each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlmon.agent.address import is_loopback, parse, shown
from dlmon.agent.config import FLAGS, SETTINGS, Config, load, parse_duration
from dlmon.errors import ConfigError, UsageError

NO_ENVIRONMENT: dict[str, str] = {}


def read(
    tmp_path: Path, text: str | bytes, flags: dict[str, str | list[str]] | None = None
) -> Config:
    path = tmp_path / "agent.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(str(path), flags or {}, NO_ENVIRONMENT)


def complaint(tmp_path: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "agent.yml"))
    assert "\n" not in message
    return message.removeprefix(str(tmp_path / "agent.yml"))


# --- what is read ---


def test_without_a_file_everything_has_its_default() -> None:
    config = load(None, {}, NO_ENVIRONMENT)
    assert config == Config()
    assert config.interval_seconds == 1
    assert config.dirs == ("/run/dlmon", "/dev/shm")
    assert config.web.listen_address == "127.0.0.1:10356"
    assert config.metrics.per_worker == "full"
    assert config.keep.dead_seconds == 3600
    assert config.limits.loaders_per_rank == 64
    assert config.limits.segments_per_user == 2048
    assert config.limits.series == 20000


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "web:\nlimits: {}\n"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == Config()


def test_every_key_can_be_set(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        interval_seconds: 0.5
        dirs: [/a, /b]
        web: {listen_address: "[::1]:0"}
        metrics: {per_worker: off}
        keep: {dead_seconds: 60}
        limits: {loaders_per_rank: 1, segments_per_user: 2, series: 300}
        """,
    )
    assert config.interval_seconds == 0.5
    assert config.dirs == ("/a", "/b")
    assert config.web.listen_address == "[::1]:0"
    assert config.metrics.per_worker == "off"  # which YAML alone would read as false
    assert config.keep.dead_seconds == 60
    assert (config.limits.loaders_per_rank, config.limits.segments_per_user) == (1, 2)
    assert config.limits.series == 300


def test_a_flag_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    text = "interval_seconds: 5\nmetrics: {per_worker: lean}\ndirs: [/a]\n"
    flags: dict[str, str | list[str]] = {"--interval": "250ms", "--dir": ["/b", "/c"]}
    config = read(tmp_path, text, flags)
    assert config.interval_seconds == 0.25
    assert config.dirs == ("/b", "/c")
    assert config.metrics.per_worker == "lean"
    assert config.limits.series == 20000


def test_the_environments_directory_is_searched_first_unless_directories_are_given(
    tmp_path: Path,
) -> None:
    environ = {"DLMON_DIR": "/mine"}
    assert load(None, {}, environ).dirs == ("/mine", "/run/dlmon", "/dev/shm")
    assert load(None, {"--dir": ["/b"]}, environ).dirs == ("/b",)
    path = tmp_path / "agent.yml"
    path.write_text("dirs: [/a]")
    assert load(str(path), {}, environ).dirs == ("/a",)


# --- what is refused ---


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("intervall_seconds: 1", 1, ["intervall_seconds", "unknown key", "interval_seconds?"]),
        ("web:\n  listen_adress: x", 2, ["web.listen_adress", "did you mean listen_address?"]),
        ("\nlisten_address: :1", 2, ["listen_address", "did you mean web.listen_address?"]),
        ("history: {seconds: 60}", 1, ["history", "unknown key", "interval_seconds, dirs"]),
        ("<<: {dirs: [a]}", 1, ["<<", "unknown key"]),
        ("1: 2", 1, ["1", "unknown key"]),
        ("[a]: 2", 1, ["a list", "as a key"]),
        ("dirs: [/a]\nkeep:\n  dead_seconds: 1\n  dead_seconds: 2", 4, ["twice", "line 3"]),
        ("web: {}\nweb: {}", 2, ["web", "given twice, first in line 1"]),
        ("interval_seconds: fast", 1, ["interval_seconds", "'fast' (a string)", "0.1 to 60"]),
        ("interval_seconds: 0", 1, ["'0' (a whole number)", "a number from 0.1 to 60"]),
        ("interval_seconds: .nan", 1, ["'.nan' (a number)", "0.1 to 60"]),
        ("interval_seconds: true", 1, ["'true' (a yes/no value)"]),
        ("interval_seconds:", 1, ["nothing is not allowed"]),
        ("interval_seconds: [1]", 1, ["a list is not allowed"]),
        ("limits: {series: 1.5}", 1, ["limits.series", "'1.5' (a number)", "a whole number"]),
        ("limits: {series: 99}", 1, ["limits.series", "99", "from 100 to 10,000,000"]),
        ("limits: {series: !!int x}", 1, ["limits.series", "'x'"]),
        ("limits: {series: !!int ''}", 1, ["limits.series"]),
        ("limits: 5", 1, ["limits", "expected a mapping with loaders_per_rank"]),
        ("dirs: /a", 1, ["dirs", "'/a' (a string)", "a list"]),
        ("dirs: []", 1, ["dirs", "a list of one or more strings"]),
        ("dirs: ['']", 1, ["dirs"]),
        ("dirs: [1]", 1, ["dirs"]),
        ("dirs: &a [*a]", 1, ["dirs"]),
        ("metrics: {per_worker: some}", 1, ["metrics.per_worker", "one of full, lean, off"]),
        ("web: {listen_address: 10356}", 1, ["web.listen_address", "host:port"]),
        ("web: {listen_address: a:99999}", 1, ["'a:99999' (a string)", "65535"]),
        ("- a", 1, ["a list", "expected a mapping with interval_seconds"]),
        ("hello", 1, ["'hello' (a string)", "expected a mapping"]),
        ("a: b: c", 1, ["no valid YAML"]),
        ("web: {listen_address: [::1]:80}", 1, ["no valid YAML", "quotes"]),
        ("a: 1\n---\nb: 2", 2, ["no valid YAML"]),
        ("keep: !!python/object:os.system {}", 1, ["keep", "unknown type"]),
    ],
)
def test_a_mistake_is_said_with_line_key_value_and_what_is_allowed(
    tmp_path: Path, text: str, line: int, parts: list[str]
) -> None:
    message = complaint(tmp_path, text)
    assert message.startswith(f":{line}: ")
    for part in parts:
        assert part in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"\x80abc"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "no valid YAML" in complaint(tmp_path, content)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    assert "larger than 1 MiB" in complaint(tmp_path, b"#" * (1 << 20) + b"\n")


def test_a_missing_file_is_said() -> None:
    with pytest.raises(ConfigError, match=re.escape("/nowhere.yml: cannot be read: No such file")):
        load("/nowhere.yml", {}, NO_ENVIRONMENT)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_content_is_a_configuration_or_one_line_of_complaint(
    tmp_path_factory: pytest.TempPathFactory, content: str | bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = f"{path} "
    try:
        load(str(path), {}, NO_ENVIRONMENT)
    except ConfigError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert len(said.splitlines()) == 1


# --- flags ---


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("500ms", 0.5), ("2m", 120), ("0.25s", 0.25), ("1h", 3600), (" 3s ", 3)],
)
def test_a_duration_has_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text, "--interval") == seconds


@pytest.mark.parametrize("text", ["", "1", "s", "-1s", "1 s", "1d", "1s2", "nans", "1e3s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--interval.*for example 1s"):
        parse_duration(text, "--interval")


@pytest.mark.parametrize(
    ("flag", "value", "part"),
    [
        ("--interval", "1ms", "0.1 to 60"),
        ("--web.listen-address", "localhost", "host:port"),
        ("--metrics.per-worker", "all", "full, lean, off"),
        ("--dir", [""], "none of them empty"),
    ],
)
def test_a_flags_value_is_checked_as_the_files(flag: str, value: str, part: str) -> None:
    with pytest.raises(UsageError, match=f"{flag}.*{part}"):
        load(None, {flag: value}, NO_ENVIRONMENT)


def test_there_are_the_flags_of_the_contract() -> None:
    assert set(FLAGS) == {
        "--interval",
        "--dir",
        "--web.listen-address",
        "--metrics.per-worker",
    }


def test_every_setting_is_described_and_its_default_is_allowed() -> None:
    for setting in SETTINGS:
        assert setting.description.endswith(".")
        assert setting.rule.permits(setting.default)


# --- addresses ---


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:10356", "127.0.0.1", 10356),
        (":9", "", 9),
        ("[::1]:0", "::1", 0),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("node-7.cluster:65535", "node-7.cluster", 65535),
    ],
)
def test_an_address_is_host_and_port(text: str, host: str, port: int) -> None:
    assert parse(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    ["", "a", "80", "a:", "a:b", "a:65536", "a:-1", "::1:80", "[::1]", "http://a:80", "a b:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        parse(text)


def test_an_address_is_shown_as_in_a_url() -> None:
    assert shown("::1", 80) == "[::1]:80"
    assert shown("127.0.0.1", 80) == "127.0.0.1:80"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_told(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "::", "fe80::1", "::ffff:10.0.0.1", "127::1", "128.0.0.1"]
)
def test_what_is_not_loopback_is_told(host: str) -> None:
    assert not is_loopback(host)


# --- what may be null ---


def test_the_directory_for_evidence_is_absolute_or_null(tmp_path: Path) -> None:
    for text, expected in (("null", None), ("~", None), ("", None), ("/var/x", "/var/x")):
        config = read(tmp_path, f"keep: {{evidence_dir: {text}}}\n")
        assert config.keep.evidence_dir == expected
    assert complaint(tmp_path, "keep: {evidence_dir: var/x}\n") == (
        ":1: keep.evidence_dir: 'var/x' (a string) is not allowed; expected an absolute path, or"
        " null"
    )
    assert ":1: keep.dead_seconds: nothing is not allowed" in complaint(
        tmp_path, "keep: {dead_seconds: }\n"
    )
