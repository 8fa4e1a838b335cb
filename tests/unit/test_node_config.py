"""node.yaml: what is wrong is said with the place, and what is left out is safe."""

from pathlib import Path

import msgspec
import pytest

from consilia.errors import ConfigError, NotFound
from consilia.node import config
from consilia.node.config import NodeConfig

GOOD = "site: charite\nhub: https://hub.example.org:8443\n"


def test_defaults_are_the_careful_ones() -> None:
    found = config.parse(GOOD)
    assert (found.sandbox, found.cuda, found.disclose_reasons) == ("required", False, False)
    assert found.arguments == {} and found.min_records == 100
    assert found.cache_bytes == 20 << 30


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sandbx: off", "unknown key 'sandbx'; did you mean 'sandbox'"),
        ("limits: {memory: 1}", "unknown key 'memory' in limits; did you mean 'memory_bytes'"),
        ("sandbox: maybe", "sandbox"),
        ("min_records: 0", "min_records: found 0, needed at least 1"),
        ("min_records: '5'", "min_records"),
        ("min_records: .nan", "min_records"),
        ("limits: {seconds: .nan}", "limits.seconds: found nan"),
        ("limits: {seconds: .inf}", "limits.seconds: found inf"),
        ("limits: {tasks: 0}", "limits.tasks: found 0"),
        ("clip_norm: -1", "clip_norm: found -1"),
        ("clip_norm: .nan", "clip_norm: found nan"),
        ("arguments: {lr: [2, 1]}", "the range [2, 1] is empty"),
        ("arguments: {lr: []}", "an empty list allows no value"),
        ("arguments: {lr: [0, .inf]}", "bound nothing"),
        ("arguments: {lr: 3}", "arguments[...]: Expected `array`"),
        ("arguments: {lr: [[1]]}", "arguments"),
        ("proxy: 'socks://x:1'", "proxy must have the form http://"),
        ("cache_bytes: -1", "cache_bytes: found -1"),
    ],
)
def test_mistakes_are_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(GOOD + text, "node.yaml")
    assert says in str(caught.value) and str(caught.value).startswith("node.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "missing required field `site`"),
        ("site: Charite\nhub: https://h:1", "site name 'Charite' is not allowed"),
        ("site: charite\nhub: http://h:1", "hub url"),
        ("site: charite\nhub: https://u:p@h:1", "hub url"),
        ("- a\n- b", "Expected `object`"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_whole_file_can_be_wrong(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    assert says in str(caught.value)


def test_save_and_load(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="consilia node join"):
        config.load(tmp_path)
    settings = msgspec.structs.replace(config.parse(GOOD), arguments={"lr": [0.0, 1.0]})
    path = config.save(tmp_path, settings, "# hello\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().startswith("# hello\nsite: charite\n")
    assert "cuda" not in path.read_text()
    assert config.load(tmp_path) == settings
    with pytest.raises(ConfigError):
        config.save(tmp_path, msgspec.structs.replace(settings, min_records=0))
    assert config.load(tmp_path) == settings


def test_every_key_is_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "node-config.md"
    text = page.read_text("utf-8")
    names = [*NodeConfig.__struct_fields__, *config.Limits.__struct_fields__]
    assert [name for name in names if f"`{name}`" not in text] == []
