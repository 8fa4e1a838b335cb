"""What the doctor says, sentence by sentence, by its key.

The console has the same keys in its catalogues (`health.check.KEY`, `health.found.KEY`,
`health.advice.KEY`) and fills in the same values, so a finding is read in any of its languages.
`told` is for what others say and nobody translates: an error's own words.
"""

from collections.abc import Mapping

import msgspec

Value = str | int | float

CHECKS: Mapping[str, str] = {
    "configuration": "configuration",
    "keys": "keys",
    "certificate": "certificate",
    "proxy": "proxy",
    "name_hub": "name of the hub",
    "name_proxy": "name of the proxy",
    "hub": "hub",
    "clock": "clock",
    "disk": "disk",
    "sandbox": "sandbox",
    "sandbox_calls": "sandbox: system calls",
    "sandbox_landlock": "sandbox: Landlock",
    "sandbox_group": "sandbox: control group",
    "gpu": "gpu",
    "console_certificate": "console certificate",
    "database": "database",
    "audit": "audit trail",
    "study_keys": "study keys",
    "dataset": "dataset {name}",
    "agent": "agent",
}

FOUND: Mapping[str, str] = {
    "told": "{text}",
    "configuration": "site {site}, hub {hub}",
    "keys": "in {place}, private",
    "not_yet": "not valid yet",
    "expired": "expired {days} days ago",
    "valid": "valid for {days} days more",
    "name": "{host} is {address}",
    "answered": "answered with status {status} over TLS 1.3",
    "skew": "{seconds} seconds against the hub's",
    "unwritable": "{place} cannot be written",
    "free": "{free} GiB free in {place}",
    "sandbox_off": "switched off in node.yaml",
    "sandbox_works": "{launcher} works",
    "calls": "filtered: what training needs is allowed, the rest is refused",
    "no_landlock": "this kernel does not offer it",
    "landlock_gaps": "version {version}, without rules on {gaps}",
    "landlock": "version {version}: files, TCP, devices, signals",
    "no_group": "none ({why}); memory is looked at ten times a second instead",
    "group": "the kernel bounds each worker's memory and processes",
    "gpu_shut": "{files} cannot be opened",
    "no_gpu": "cuda: true in node.yaml, and no /dev/nvidia0",
    "open_key": "{file} is readable by others",
    "broken": "broken at line {line}: {why}",
    "unbroken": "{lines} lines, unbroken",
    "enabled": "{records} records, enabled",
    "disabled": "{records} records, disabled",
    "changed": "{place} was changed after it was registered",
    "new_file": "{place} is new since it was registered",
    "folder_now": "{place} is a folder now",
    "gone": "{place}: No such file",
    "agent_down": "does not run",
    "agent_runs": "runs, connected",
}

ADVICE: Mapping[str, str] = {
    "configuration": "correct node.yaml, or join a hub",
    "keys": "restore secrets/ from a backup, or join again with a new token",
    "first_day": "set this machine's clock (NTP): it lies before the certificate's first day",
    "new_token": "ask the hub's operator for a new token, and join in a new directory",
    "not_renewed": "the agent renews it while it serves: start it, and see its log",
    "proxy": "correct proxy and proxy_password_file",
    "name": "check the name in node.yaml and this machine's DNS: {host}",
    "refused": "the hub answers but refuses this node: ask its operator",
    "true_clock": "compare this machine's clock with a true one (NTP) first; if it is right, "
    "the hub's certificate has run out: tell its operator",
    "proxy_user": "the proxy asks for a user: set http://USER@... and proxy_password_file",
    "proxy_tunnel": "ask who runs the proxy to let CONNECT {address} through, unopened",
    "proxy_silent": "nothing answers at the proxy {address}: check proxy in node.yaml",
    "outgoing": "outgoing TCP to {address} must be allowed, and nothing on the way may open "
    "TLS; ask the hub's operator if the hub runs and this site is enrolled",
    "clock": "set this machine's clock (NTP); approvals end by its calendar",
    "writable": "let the node's user write to it: chown -R consilia: {place}",
    "room": "make room: models and updates need {need} GiB or more",
    "sandbox_off": "set sandbox: required in node.yaml; plans can read what this user can",
    "sandbox": "see docs/how-to/sandbox.md",
    "sandbox_says": "every run says: {warning}",
    "calls": "use an x86_64 or aarch64 kernel with seccomp filters",
    "landlock": "Linux 5.13 or newer with landlock in the lsm= list (/sys/kernel/security/lsm)",
    "landlock_gaps": "a newer kernel closes the gaps; bubblewrap covers them meanwhile",
    "group": "Delegate=memory pids in the agent's systemd unit, on control groups version 2",
    "group_agent": "start the agent, then look again; Delegate=memory pids in the agent's "
    "systemd unit, on control groups version 2",
    "gpu_shut": "let the node's user open them: see the group of these files (often video)",
    "no_gpu": "install the NVIDIA driver, or set cuda: false; tasks run on the processor "
    "meanwhile",
    "new_certificate": "put the hospital's new one in place, restart it",
    "open_key": "chmod 600 {file}",
    "certificate_file": "see console.certificate in node.yaml",
    "database": "restore node.sqlite from a backup",
    "audit": "somebody changed the trail; compare with a backup before going on",
    "study_keys": "restore {folder} and secrets from one backup, or purge the study",
    "dataset": "put the file back, or accept it as it is: consilia dataset refresh NAME",
    "agent_log": "see log/agent.log; restart it if it hangs",
    "agent_start": "start it: consilia node serve",
    "agent_problem": "see log/agent.log",
}


class Finding(msgspec.Struct, frozen=True):
    """One check: whether it is well, what was found, and what to do when it is not.

    `keys` name the three sentences (the last "" where there is no advice), `values` fill them.
    """

    check: str
    ok: bool
    found: str
    advice: str
    keys: tuple[str, str, str]
    values: dict[str, Value]


def finding(check: str, ok: bool, found: str, advice: str = "", **values: Value) -> Finding:
    """Return a finding in these sentences; KeyError for a key or value that is missing."""
    return Finding(
        CHECKS[check].format(**values),
        ok,
        FOUND[found].format(**values),
        ADVICE[advice].format(**values) if advice else "",
        (check, found, advice),
        values,
    )
