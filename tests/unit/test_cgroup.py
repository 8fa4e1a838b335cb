"""Finding the group below which workers get theirs."""

import os
from pathlib import Path

import pytest

from consilia.errors import WorkerError
from consilia.node import cgroup
from consilia.node.cgroup import Unavailable


def machine(
    root: Path, own: str, *, controllers: str = "cpu memory pids", mount_root: str = "/"
) -> Path:
    """Folders as the kernel shows them: /proc of a process in group `own`, and the groups."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self/cgroup").write_text(f"0::{own}\n")
    (proc / "self/mountinfo").write_text(
        f"22 1 0:20 / /proc rw - proc proc rw\n"
        f"30 23 0:26 {mount_root} {groups} rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"
    )
    path = groups
    for part in ("", *Path(own).relative_to(mount_root).parts):
        path /= part
        path.mkdir(exist_ok=True)
        (path / "cgroup.subtree_control").write_text("\n")
        (path / "cgroup.procs").write_text("")
        (path / "cgroup.controllers").write_text(controllers + "\n")
    return proc


def delegated(path: Path) -> None:
    try:
        os.setxattr(path, "user.delegate", b"1")
    except OSError:
        pytest.skip("this file system keeps no extended attributes")


def test_a_unit_that_was_handed_over(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/system.slice/consilia-node.service")
    delegated(unit := tmp_path / "cgroup/system.slice/consilia-node.service")
    assert cgroup.find(proc=proc) == unit


def test_a_subgroup_of_a_unit_that_was_handed_over(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/system.slice/consilia-node.service/agent")
    delegated(unit := tmp_path / "cgroup/system.slice/consilia-node.service")
    assert cgroup.find(proc=proc) == unit


def test_a_containers_own_tree(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/")
    assert cgroup.find(proc=proc) == tmp_path / "cgroup"


def test_a_mount_that_shows_a_part_of_the_tree(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/pod/container", mount_root="/pod/container")
    assert cgroup.find(proc=proc) == tmp_path / "cgroup"


def test_a_unit_that_was_not_handed_over(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/system.slice/consilia-node.service")
    with pytest.raises(Unavailable, match=r"not handed over to the agent .*Delegate=memory"):
        cgroup.find(proc=proc)


def test_controllers_that_are_not_there(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/", controllers="cpu hugetlb")
    with pytest.raises(Unavailable, match="controllers memory and pids"):
        cgroup.find(proc=proc)


def test_no_groups_of_version_2(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/")
    (proc / "self/mountinfo").write_text("22 1 0:20 / /proc rw - proc proc rw\n")
    with pytest.raises(Unavailable, match="no control groups of version 2"):
        cgroup.find(proc=proc)


def test_a_group_that_cannot_be_seen(tmp_path: Path) -> None:
    proc = machine(tmp_path, "/")
    (proc / "self/cgroup").write_text("1:memory:/x\n")
    with pytest.raises(Unavailable, match="cannot be seen"):
        cgroup.find(proc=proc)


def test_a_group_that_cannot_be_made_is_the_workers_error(tmp_path: Path) -> None:
    (tmp_path / "worker-1").mkdir()
    with pytest.raises(WorkerError, match="no control group for the worker"):
        cgroup.make(tmp_path, "1", 1 << 30, 10)


def test_what_the_kernel_says_of_an_ended_worker(tmp_path: Path) -> None:
    group = cgroup.Group(tmp_path)
    assert not group.starved()
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\n")
    assert not group.starved()
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 1\noom_kill 3\n")
    assert group.starved()
