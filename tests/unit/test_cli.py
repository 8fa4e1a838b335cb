"""The command line's habits: examples, prefixes, exit codes, output, start-up time."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from consilia import errors
from consilia.cli import main, options, output
from consilia.cli.blame import in_options
from consilia.errors import ConfigError, NotFound, Wrong
from consilia.sdk.digests import resolve

A, B = "sha256:" + "ab12cd34" + "0" * 56, "sha256:" + "ab12cd34" + "1" * 56
C = "b3:" + "ffeeddcc" + "2" * 56


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


SOURCE = {"PYTHONPATH": str(Path(main.__file__).parents[2])}  # also when not installed
COMMANDS = dict(_commands(typer.main.get_command(main.app)))


def test_every_command_of_the_manual_is_there() -> None:
    needed = """
        hub init|hub serve|hub invite|hub revoke|hub sites|hub token create|hub token list
        |hub rotate-key|hub token revoke|people list|people invite|people accept|people roles
        |people disable|people end-sessions|people unlock|people remove
        |people second-factor set-up|people second-factor confirm
        |people second-factor remove|people ask|people requests|people decide
        |key create|key list|key revoke|logout|node join|node serve|node status|node doctor
        |node plans|node approve
        |node reject|node revoke|node studies|node accept|node decline|node log|node job-log
        |node hub-audit
        |node peers|node pin|node plan-show|node plan-diff|node dry-run|node endorse
        |node endorsed|node study-diff|node leave|node purge|node policy show|node policy check
        |node policy apply|node console|node console-invite
        |node budget show|node budget history|node budget estimate|node budget verify
        |node budget accept-restore|node budget cap set|node budget cap remove
        |dataset add|dataset list|dataset show|dataset edit|dataset disable|dataset enable
        |dataset remove|dataset schema|dataset refresh|dataset profile|dataset preview
        |dataset mock|study datasets|study mock|plan submit|plan list|plan show|plan diff
        |loading create|loading edit|loading list|loading show|loading versions|loading diff
        |loading export|loading preview|loading attach|loading accept|loading attached
        |loading detach|loading refresh|study harmonise|study compare|statistics
        |pool open|pool send|pool take|pool withdraw|pool status
        |node optout add|node optout import|node optout remove|node optout list
        |dataset holdout|study create|study submit|study show|study list|study close
        |study revise
        |experiment run|experiment validate|experiment change|experiment rollback
        |experiment branch|experiment evaluate|experiment evaluations|jobs|pause|stop|resume
        |models list|models get|models download|models stage|models card|models compare
        |audit verify|audit list|audit export|login
        |privacy request|privacy audit|node privacy-report|node hard-cases"""
    assert {" ".join(path) for path in COMMANDS} == {c.strip() for c in needed.split("|")}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    assert command.help
    assert f"$ consilia {' '.join(path)}" in command.epilog
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} has no help"
    names = {option for p in command.params for option in p.opts}
    assert "--json" in names or path[-1] in ("serve", "console")


def run(*words: str, home: Path, **more: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")}
    environment = {**clean, "HOME": str(home), "XDG_CONFIG_HOME": str(home), **SOURCE, **more}
    return subprocess.run(
        [sys.executable, "-m", "consilia.cli.main", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=30,
    )


def test_help_imports_nothing_slow(tmp_path: Path) -> None:
    slow = ("torch", "numpy", "httpx", "litestar", "sqlalchemy", "rich", "duckdb", "aiohttp")
    code = (
        "import sys; from consilia.cli.main import main\n"
        "sys.argv = ['consilia', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print([m for m in {slow!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **SOURCE},
        timeout=30,
    )
    assert done.stderr.strip() == "[]"


def test_help_is_quick(tmp_path: Path) -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help", home=tmp_path).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Of the processor, the best of several tries: a busy machine is no reason to fail.
    assert min(cpu_seconds() for _ in range(5)) < 1.0  # 0.3 on a machine like the benchmarks'


def test_a_wrong_directory_is_one_clear_line_and_its_exit_code(tmp_path: Path) -> None:
    done = run("node", "plans", "--dir", str(tmp_path), home=tmp_path)
    assert done.returncode == NotFound.exit_code
    assert "is not a node's directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_with_json_an_error_is_json_too(tmp_path: Path) -> None:
    done = run("hub", "sites", "--dir", str(tmp_path), "--json", home=tmp_path)
    assert done.returncode == ConfigError.exit_code
    problem = json.loads(done.stderr)
    assert problem["error"] == "ConfigError"
    assert "consilia hub init" in problem["detail"]


def test_without_login_a_researcher_is_told_what_to_do(tmp_path: Path) -> None:
    done = run("jobs", home=tmp_path)
    assert done.returncode == ConfigError.exit_code
    assert "consilia login" in done.stderr


def test_a_wrong_option_exits_with_2(tmp_path: Path) -> None:
    assert run("study", "create", "x", "--no-such", home=tmp_path).returncode == 2


def test_a_defect_exits_with_70_and_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import sys; from consilia.cli import main\n"
        "def broken(): raise ZeroDivisionError('a defect')\n"
        "main.app.command('broken')(broken)\n"
        "sys.argv = ['consilia', 'broken']\n"
        "main.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **SOURCE, "XDG_STATE_HOME": str(tmp_path)},
        timeout=30,
    )
    assert done.returncode == main.DEFECT == 70
    assert "Traceback" not in done.stderr
    (kept,) = tmp_path.glob("consilia/defect-*.log")
    assert str(kept) in done.stderr
    assert "ZeroDivisionError: a defect" in kept.read_text()


def test_exit_codes_do_not_collide_with_those_of_the_shell() -> None:
    codes = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.ConsiliaError)
    }
    assert codes <= set(range(1, 14))


@pytest.mark.parametrize(
    ("said", "words", "told"),
    [
        (Wrong("config.rounds", "0", "1 or more"), ["--rounds", "0"], "--rounds: found 0"),
        ("config.rounds: found 0", ["--rounds=0"], "--rounds: found 0"),
        ("config.rounds: found 0", ["run", "x.yaml"], "config.rounds: found 0"),  # of a file
        ("dp.clip_norm: found -1", ["--clip-norm", "-1"], "--clip-norm: found -1"),
        (Wrong("rounds", "0", "1", "no round is 0"), ["--rounds", "0"], "--rounds: no round"),
        ("the hub does not answer: 502", ["--rounds", "1"], "the hub does not answer: 502"),
    ],
)
def test_an_error_names_the_option_that_was_typed(
    said: str | Wrong, words: list[str], told: str
) -> None:
    assert in_options(ConfigError(said), words).startswith(told)


def test_what_has_no_default_shows_none() -> None:
    shown = CliRunner().invoke(main.app, ["dataset", "holdout", "--help"]).output
    assert "[default: 0" not in shown.partition("--seed")[0]
    assert "[default: 0" in shown.partition("--seed")[2].partition("--column")[0]


# ---- digests by prefix -----------------------------------------------------------------------


def test_a_digest_is_found_whole_or_by_its_first_8_digits() -> None:
    assert resolve(A, [A, B, C], "plan", "x") == A
    assert resolve("ffeeddcc", [A, B, C], "plan", "x") == C
    assert resolve("b3:FFEEDDCC", [A, B, C], "plan", "x") == C
    assert resolve("ab12cd341", [A, B, C], "plan", "x") == B


def test_seven_digits_are_too_few() -> None:
    with pytest.raises(ConfigError, match="at least 8"):
        resolve("ffeeddc", [A, B, C], "plan", "consilia plan list")


def test_an_ambiguous_prefix_lists_what_it_fits() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve("ab12cd34", [A, B, C], "plan", "consilia plan list")
    assert A in str(caught.value)
    assert B in str(caught.value)
    assert C not in str(caught.value)


def test_a_prefix_of_another_algorithm_or_of_nothing_is_not_found() -> None:
    for text in ("sha256:ffeeddcc", "0123456789", "zzzzzzzz"):
        with pytest.raises(NotFound, match="consilia plan list"):
            resolve(text, [A, B, C], "plan", "consilia plan list")


# ---- options and output ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("0.5", 0.5), ("1e-3", 0.001), ("true", True), ("False", False), ("sgd", "sgd")],
)
def test_scalars_read_as_a_person_means_them(text: str, value: object) -> None:
    found = options.scalar(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity"])
def test_what_is_no_finite_number_stays_text(text: str) -> None:
    assert options.scalar(text) == text


def test_pairs_refuse_other_forms_and_repetition() -> None:
    assert options.pairs(["a=1", "b = x=y"], "--allow") == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="not NAME=VALUE"):
        options.pairs(["lr"], "--allow")
    with pytest.raises(ConfigError, match="twice"):
        options.pairs(["lr=1", "lr=2"], "--allow")


def test_a_pipe_gets_tab_separated_lines(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "n"), [["a\tb", "1"], ["c\nd", "2"]])
    assert capsys.readouterr().out == "name\tn\na b\t1\nc d\t2\n"


def test_an_empty_list_is_an_empty_array_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    nothing: list[str] = []
    output.listing(nothing, {"name": str}, True)
    assert json.loads(capsys.readouterr().out) == []
    output.listing(nothing, {"name": str}, False, "nothing here")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "nothing here\n")
