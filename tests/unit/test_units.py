"""The systemd units: well formed, and hardened by nothing that would break the sandbox."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
# each forbids user namespaces, or a mount of /proc, to bubblewrap somewhere; see the unit
BREAKING = {
    "NoNewPrivileges", "RestrictNamespaces", "PrivateUsers", "SystemCallFilter", "ProcSubset",
    "ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "PrivateDevices",
    "RestrictSUIDSGID", "LockPersonality", "MemoryDenyWriteExecute", "ProtectHostname",
    "ProtectClock", "ProtectKernelModules", "RestrictRealtime", "RestrictAddressFamilies",
}  # fmt: skip


def options(unit: Path) -> dict[str, str]:
    lines = (line.strip() for line in unit.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and line[0] not in "#[")
    return {key: value for key, _, value in pairs}


def test_there_are_units() -> None:
    assert [u.stem for u in UNITS] == ["consilia-console", "consilia-hub", "consilia-node"]


@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_a_unit_needs_no_privilege_and_leaves_the_sandbox_its_namespaces(unit: Path) -> None:
    found = options(unit)
    if unit.stem == "consilia-hub":  # no sandbox is made there
        assert found["NoNewPrivileges"] == found["RestrictNamespaces"] == "true"
    else:
        assert not BREAKING.intersection(found)
    assert found["CapabilityBoundingSet"] == "" and found["LimitCORE"] == "0"
    assert found["ProtectSystem"] == "strict" and found["User"] == "consilia"
    assert f"--dir {found['ReadWritePaths']}" in found["ExecStart"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
@pytest.mark.parametrize("unit", UNITS, ids=lambda u: u.stem)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text().replace(options(unit)["ExecStart"].split()[0], "/bin/true")
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    own = [line for line in done.stderr.splitlines() if unit.name in line]
    assert done.returncode == 0 and own == []


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setpriv") or not shutil.which("bwrap"),
    reason="needs root, setpriv and bubblewrap",
)
def test_bubblewrap_works_without_any_capability_on_a_read_only_system() -> None:
    """What CapabilityBoundingSet= and ProtectSystem=strict leave to the agent is enough."""
    walls = "bwrap --unshare-all --unshare-user --ro-bind / / --proc /proc --dev /dev true"
    drop = "setpriv --reuid=65534 --regid=65534 --clear-groups --bounding-set=-all"
    script = f"mount -o remount,ro,bind / && {drop} {walls}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
