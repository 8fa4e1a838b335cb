"""hub.yaml: what is wrong is named with its line and the nearest valid key."""

import stat
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from consilia.cli import main
from consilia.errors import ConfigError, Conflict
from consilia.hub import config
from consilia.hub.config import S3, Directory, HubConfig, Limits, PeopleRules, Retention


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "hub.yaml").write_text(text, "utf-8")
    return tmp_path


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    made = HubConfig(
        name="heart-network",
        people_listen="0.0.0.0:443",
        node_listen="[::]:8444",
        hosts=("hub.example.org", "10.1.2.3"),
        limits=Limits(poll_wait=10),
        log_level="debug",
    )
    config.write(tmp_path / "hub", made)
    assert config.load(tmp_path / "hub") == made


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, "# nothing set\n")) == HubConfig()


@pytest.mark.parametrize(("text", "versions"), [("all", "all"), ("1", 1), ("20", 20)])
def test_retention_is_all_or_a_number(tmp_path: Path, text: str, versions: str | int) -> None:
    write(tmp_path, f"retention: {{versions: {text}}}\n")
    assert config.load(tmp_path).retention.versions == versions


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    config.write(tmp_path / "hub", HubConfig())
    mode = stat.S_IMODE((tmp_path / "hub" / "secrets").stat().st_mode)
    assert mode == 0o700


def test_a_hub_is_never_overwritten(tmp_path: Path) -> None:
    config.write(tmp_path, HubConfig())
    before = Directory(tmp_path).config.read_bytes()
    with pytest.raises(Conflict, match="holds a hub already"):
        config.write(tmp_path, HubConfig(name="other"))
    assert Directory(tmp_path).config.read_bytes() == before


def test_a_missing_hub_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="consilia hub init"):
        config.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "name: a\npeople_listn: x:1\n",
            r"line 2: unknown key 'people_listn'; did you mean 'people_listen'\?",
        ),
        (
            "name: a\nlimits:\n  pol_wait: 3\n",
            r"line 3: unknown key 'pol_wait' in limits; did you mean 'poll_wait'\?",
        ),
        ("name: a\nname: b\n", "line 2: key 'name' is there twice, first on line 1"),
        (
            "limits:\n  poll_wait: soon\n",
            "line 2: limits.poll_wait: Expected `float`, got `str`",
        ),
        ("hosts:\n  - a\n  - 5\n", r"hosts\[.*\]: Expected `str`, got `int`"),
        ("log_level: loud\n", "line 1: log_level: Invalid enum value 'loud'; Valid: debug,"),
        ("- a\n- b\n", "Expected `object`, got `array`"),
        ("name: [\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("name: Heart Network\n", "hub name 'Heart Network' is not allowed"),
        ("people_listen: 8443\n", "line 1: people_listen: Expected `str`, got `int`"),
        ("people_listen: localhost\n", "people_listen: 'localhost' is not host:port"),
        ("node_listen: 'a:99999'\n", "node_listen: 'a:99999' is not host:port"),
        ("node_listen: 'a b:1'\n", "'a b' is no host name"),
        ("hosts: []\n", "hosts is empty"),
        ("hosts: ['https://hub.example.org']\n", "no host name or IP address"),
        ("presence_seconds: 0\n", "presence_seconds is 0, must be between 1 and 3600"),
        ("presence_seconds: .nan\n", "presence_seconds is nan"),
        ("limits: {init_frame_bytes: 5}\n", "limits.init_frame_bytes is 5"),
        ("retention: {versions: some}\n", "line 1: retention.versions"),
        ("retention: {versions: 0}\n", "retention.versions is 0, must be between 1"),
        ("retention: {versions: 1.5}\n", "line 1: retention.versions"),
        ("retention: {version: 3}\n", r"unknown key 'version' in retention; did you mean"),
        ("retention: {upload_days: 0.5}\n", "retention.upload_days is 0.5"),
        ("retention: {best_is: high}\n", "retention.best_is: Invalid enum value 'high'"),
        ("database: mysql://x/y\n", "database: mysql is not known"),
        ("database: postgresql://u:pw@db/x\n", "a password must not stand in hub.yaml"),
        ("database_password_file: a\ndatabase_password_env: B\n", "not both"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load(write(tmp_path, text))


def test_no_password_is_repeated_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(tmp_path, "database: postgresql://u:hunter2@db/x\n"))
    assert "hunter2" not in str(caught.value)


def test_sqlite_lies_in_the_directory(tmp_path: Path) -> None:
    assert config.database_url(tmp_path, HubConfig()) == f"sqlite:///{tmp_path}/hub.sqlite"


def test_the_password_comes_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("p@ss/word\n", "utf-8")
    text = "database: postgresql://hub@db:5432/consilia\ndatabase_password_file: pw\n"
    made = config.load(write(tmp_path, text))
    url = config.database_url(tmp_path, made)
    assert url == "postgresql+psycopg://hub:p%40ss%2Fword@db:5432/consilia"


def test_the_password_comes_from_the_environment(tmp_path: Path) -> None:
    name = "CONSILIA_TEST_DATABASE_PASSWORD"
    made = HubConfig(database="postgresql://hub@db/consilia", database_password_env=name)
    with pytest.raises(ConfigError, match=f"variable {name} is not set"):
        config.database_url(tmp_path, made, {})
    url = config.database_url(tmp_path, made, {name: "secret"})
    assert url == "postgresql+psycopg://hub:secret@db/consilia"


def test_a_password_without_a_user_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("x", "utf-8")
    text = "database: postgresql://db/consilia\ndatabase_password_file: pw\n"
    made = config.load(write(tmp_path, text))
    with pytest.raises(ConfigError, match="no user"):
        config.database_url(tmp_path, made)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("hub.example.org:8443", ("hub.example.org", 8443)),
        ("[::1]:8443", ("::1", 8443)),
    ],
)
def test_listen_addresses(text: str, parts: tuple[str, int]) -> None:
    assert config.parse_listen(text, "x") == parts


def test_every_key_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/hub-config.md").read_text("utf-8")
    groups: dict[str, type[msgspec.Struct]] = {
        "limits": Limits,
        "retention": Retention,
        "s3": S3,
        "people": PeopleRules,
    }
    keys = [f.name for f in msgspec.structs.fields(HubConfig) if f.name not in groups]
    for name, group in groups.items():
        keys += [f"{name}.{f.name}" for f in msgspec.structs.fields(group)]
    assert [k for k in keys if f"`{k}`" not in text] == []


def test_hub_init_takes_the_password_file_and_the_bucket(tmp_path: Path) -> None:
    secret = tmp_path / "bucket.key"
    secret.touch(mode=0o600)
    secret.write_text("id\nsecret\n")
    made = CliRunner().invoke(
        main.app,
        [
            "hub", "init", str(tmp_path / "hub"), "--bucket", "frames", "--bucket-endpoint",
            "https://s3.example.org", "--bucket-credentials-file", str(secret),
        ],
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    kept = config.load(tmp_path / "hub")
    assert kept.s3 == config.S3(
        "frames", endpoint="https://s3.example.org", credentials_file=str(secret)
    )
    for words, told in (
        (["--bucket-region", "eu-1"], "--bucket: found none"),
        (["--database-password-file", str(tmp_path / "none")], "is no file"),
    ):
        refused = CliRunner().invoke(main.app, ["hub", "init", str(tmp_path / "other"), *words])
        assert refused.exit_code != 0
        assert isinstance(refused.exception, ConfigError)
        assert told in str(refused.exception)
        assert not (tmp_path / "other").exists()
