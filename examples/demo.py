"""The demo: one hub, four hospitals, real patients, twenty rounds, and a table.

    ./run demo [--serve] [--rounds N] [--dir FOLDER]

Every party is a process of its own; they meet only over TLS 1.3 with certificates on both
sides. What an operator, a hospital or a researcher would type is typed here, too: the commands
are printed as they run. The patients are those of examples/cohort.py.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cohort
import judge
from processes import CONSILIA, Processes

from consilia import Client, Experiment
from consilia.errors import ConsiliaError
from consilia.sdk.progress import summary

ROOT = Path(__file__).resolve().parent.parent
PLAN = ROOT / "examples" / "breast_cancer.py"
SITES = [hospital.site for hospital in cohort.HOSPITALS]
STUDY, TAG = "tumour", "breast-cancer"
VICTIM = "county"
SEED = 7
GRACE = 10.0  # seconds a round waits for the last hospital once the others are in
SMALLEST = 40  # the hospitals' own least number of records; the default, 100, suits real ones


def main():
    """Run the demo; return the exit status."""
    options = _options()
    folder = _fresh_folder(Path(options.dir))
    demo = Demo(folder, options.rounds)
    with Processes(demo.environment) as processes:
        try:
            experiment = demo.run(processes)
            if options.serve:
                demo.serve(processes, experiment)
        except KeyboardInterrupt:
            print("\nended by Ctrl-C; every process is stopped")
            return 130
        except DemoError as e:
            print(f"\nThe demo stopped: {e}\nLogs: {folder}/*/log", file=sys.stderr)
            return 1
        except ConsiliaError as e:
            print(f"\nThe demo stopped: {e}\nLogs: {folder}/*/log", file=sys.stderr)
            return e.exit_code
    return 0


class DemoError(Exception):
    """A step of the demo did not do what it must."""


class Demo:
    """One run in one folder."""

    def __init__(self, folder, rounds):
        """Choose ports and the sandbox; nothing is started yet."""
        self.folder = folder
        self.rounds = rounds
        self.hub = folder / "hub"
        self.people, self.nodes = _free_port(8443), _free_port(8444)
        self.url = f"https://localhost:{self.people}"
        self.sandbox = "required" if _sandbox_works() else "off"
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("CONSILIA_")},
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])
            ),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, processes):
        """Set everything up, train, judge, report; return the finished experiment."""
        began = time.monotonic()
        print(f"Consilia demo in {self.folder}")
        held_out = self._divide()
        self._start_hub(processes)
        self._join(processes)
        self._govern()
        ready = time.monotonic()
        experiment, trained, absent = self._train(processes)
        self._report(experiment, held_out, trained, absent)
        self._verify()
        self._farewell(experiment, ready - began, time.monotonic() - began)
        return experiment

    # ---- the steps ---------------------------------------------------------------------------

    def _divide(self):
        _title("Data: the Wisconsin breast cancer cohort, divided among four hospitals")
        held_out = judge.write_cohort(self.folder / "data")
        for hospital in cohort.HOSPITALS:
            total = hospital.benign + hospital.malignant
            share = 100 * hospital.malignant / total
            print(f"  {hospital.site:<14} {total:>4} patients, {share:.0f} % malignant")
        print(f"  {'held out':<14} {len(held_out.y):>4} patients, nobody trains on them")
        print(f"  seed {cohort.SEED}; as CSV in {self.folder / 'data'}")
        return held_out

    def _start_hub(self, processes):
        _title("The hub")
        made = self._consilia(
            "hub", "init", self.hub, "--people", f"127.0.0.1:{self.people}",
            "--nodes", f"127.0.0.1:{self.nodes}", "--host", "localhost", "--json",
        )  # fmt: skip
        self.link = json.loads(made)["invitation"]["link"]
        _show("hub", "serve", "--dir", self.hub)
        log = self.hub / "log" / "hub.log"
        log.parent.mkdir(exist_ok=True)
        processes.start("hub", ["hub", "serve", "--dir", self.hub], log)
        _wait("the hub to answer", processes, lambda: _answers(self.people), log)

    def _join(self, processes):
        _title("Four hospitals join, each with a one-time token of its own")
        if self.sandbox == "off":
            print(
                "  WARNING: bubblewrap does not work here: the researcher's code runs WITHOUT\n"
                "  a sandbox in this demo. On Debian and Ubuntu: apt-get install bubblewrap"
            )
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._enrol, SITES))
        for site in SITES:  # from the main thread: children end with the thread that made them
            self._start_node(processes, site)
        _show("hub", "sites", "--dir", self.hub)
        self._wait_online(processes, SITES)
        print(f"  online: {', '.join(SITES)}")

    def _enrol(self, site):
        first, node = site == SITES[0], self._node(site)
        invited = self._consilia("hub", "invite", site, "--dir", self.hub, quiet=not first)
        self._consilia(
            "node", "join", "-", "--dir", node, "--sandbox", self.sandbox,
            stdin=invited, quiet=not first,
        )  # fmt: skip
        with (node / "node.yaml").open("a") as settings:
            settings.write(f"min_records: {SMALLEST}  # the default is 100\n")
            settings.write("limits: {threads: 1}  # four hospitals share this machine\n")
        self._consilia(
            "dataset", "add", self.folder / "data" / f"{site}.csv", "--name", "cohort",
            "--tag", TAG, "--dir", node, quiet=not first,
        )  # fmt: skip
        if first:
            print(f"  ... and the same at {', '.join(SITES[1:])}")

    def _start_node(self, processes, site):
        node = self._node(site)
        log = node / "log" / "console.log"
        log.parent.mkdir(exist_ok=True)
        processes.start(site, ["node", "serve", "--dir", node], log)

    def _govern(self):
        _title("The researcher proposes, each hospital decides")
        secret = self._consilia("hub", "token", "create", "ada", "--role", "researcher",
                                "--dir", self.hub)  # fmt: skip
        self.environment |= {
            "CONSILIA_URL": self.url,
            "CONSILIA_TOKEN": secret.strip(),
            "CONSILIA_CA": str(self.hub / "secrets" / "ca.pem"),
        }
        self._remember_researcher()
        self._consilia(
            "study", "create", STUDY, "--tag", TAG,
            "--purpose", "Tell malignant from benign breast tumours",
            *(word for site in SITES for word in ("--site", site)),
        )  # fmt: skip
        self._consilia("study", "submit", STUDY)
        answer = self._consilia("plan", "submit", PLAN, "--study", STUDY, "--json")
        self.digest = json.loads(answer)["digest"]
        print(f"  plan {self.digest}")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self._decide, SITES))

    def _decide(self, site):
        first, node = site == SITES[0], self._node(site)
        _until(
            f"{site} to be offered study and plan",
            lambda: self.digest in self._consilia("node", "plans", "--dir", node, "--json",
                                                  quiet=True),
        )  # fmt: skip
        self._consilia("node", "accept", STUDY, "--reason", "contract signed", "--dir", node,
                       quiet=not first)  # fmt: skip
        self._consilia(
            "node", "approve", self.digest.split(":")[1][:12], "--reason", "source reviewed",
            "--dir", node, quiet=not first,
        )  # fmt: skip
        if first:
            print(f"  ... and the same at {', '.join(SITES[1:])}")

    def _train(self, processes):
        _title(f"Training: {self.rounds} rounds; {VICTIM} is killed on the way and comes back")
        client = Client(environ=self.environment)
        experiment = Experiment(
            client, study=STUDY, plan=self.digest, rounds=self.rounds, seed=SEED,
            min_sites=len(SITES), min_updates=3, grace=GRACE, name="demo",
        ).start()  # fmt: skip
        killed = False
        began = time.monotonic()
        for number, _ in experiment.stream_metrics():
            view = next(r for r in experiment.job.rounds if r.round == number)
            print(f"  round {number:>2}/{self.rounds}  {summary(view)}", flush=True)
            if not killed and number >= self.rounds // 4:
                killed = True
                processes.kill(VICTIM)
                print(f"  -- {VICTIM}: kill -9 of the node and its worker")
                self._start_node(processes, VICTIM)
                print(f"  -- {VICTIM}: its node is started again")
        job = experiment.wait()
        trained = time.monotonic() - began
        if job.state != "done":
            raise DemoError(f"job {job.id} is {job.state}: {job.cause}")
        absent = [r.round for r in experiment.rounds if VICTIM not in r.sites]
        return experiment, trained, absent

    def _report(self, experiment, held_out, trained, absent):
        module = judge.load_plan_module()
        _title("The same held-out patients, judged by each model")
        rows = []
        for site in SITES:
            alone = judge.train_without_federation(
                module, self.folder / "data" / f"{site}.csv", self.rounds, SEED
            )
            rows.append((f"{site} alone", *judge.judge(module, alone, held_out)))
        federated = experiment.get_model().weights
        rows.append(("federated", *judge.judge(module, federated, held_out)))
        pooled = judge.train_without_federation(
            module, self.folder / "data" / "pooled.csv", self.rounds, SEED
        )
        rows.append(("pooled (forbidden)", *judge.judge(module, pooled, held_out)))
        print(f"  {'model':<20} {'accuracy':>9} {'AUC':>9}")
        for name, accuracy, auc in rows:
            print(f"  {name:<20} {accuracy:>9.3f} {auc:>9.4f}")
        rounds = experiment.rounds
        seconds = sorted(r.seconds for r in rounds)[len(rounds) // 2]
        received, sent = sum(r.bytes_in for r in rounds), sum(r.bytes_out for r in rounds)
        print(
            f"\n  {seconds:.3f} s per round (median), {trained:.1f} s for {len(rounds)}\n"
            f"  {received / 1e3:.0f} kB of updates to the hub, {sent / 1e3:.0f} kB of models "
            "to the hospitals; no patient record"
        )
        missed = ", ".join(map(str, absent)) or "none: it was given its open task again"
        print(f"  rounds without {VICTIM}, which was killed and came back: {missed}")

    def _verify(self):
        _title("The audit trails")
        self._consilia("audit", "verify", "--hub", self.hub, loud=True)
        for site in SITES:
            self._consilia("audit", "verify", "--node", self._node(site), loud=True)

    def _farewell(self, experiment, setup, total):
        model = experiment.get_model()
        path = model.save(self.folder / "model.npz")
        _title("Where everything lies")
        print(
            f"  model        {path} (version {model.view.id})\n"
            "  audit        consilia audit list, consilia node log --dir ...\n"
            f"  logs         {self.hub / 'log'}, {self.folder}/HOSPITAL/log\n"
            f"  settings     {self.hub / 'hub.yaml'}, {self.folder}/HOSPITAL/node.yaml\n"
            f"  {total:.0f} s in all, {setup:.0f} s of them to set up"
        )

    def serve(self, processes, experiment):
        """Stay until Ctrl-C."""
        console, invitation = self._console(processes, SITES[0])
        _title("Everything is left running; Ctrl-C ends it")
        print(
            f"  dashboard    {self.url}/experiments/{experiment.job.id}\n"
            f"  sign in      {self.link}\n"
            "               (once: choose a name and a password; the browser warns, since the\n"
            f"               certificate is by the demo's own CA, {self.hub}/secrets/ca.pem)\n"
            f"  a hospital   {console}  (the console of {SITES[0]})\n"
            f"  sign in      {invitation}\n"
            "               (once, as its administrator; of another hospital: consilia node\n"
            "               console, then consilia node console-invite, each with\n"
            f"               --dir {self._node('SITE')})\n"
            f"  people       {self.url}  (REST; /healthz, /metrics)\n"
            f"  nodes        https://localhost:{self.nodes}\n"
            f"  researcher   source {self.folder / 'researcher.env'}\n"
            f"  operator     {self.hub / 'secrets' / 'operator.token'}\n"
            f"  command      {' '.join(CONSILIA)}",
            flush=True,
        )
        while True:
            _check(processes)
            time.sleep(1.0)  # nothing waits for this but the person at the keyboard

    def _console(self, processes, site):
        """Start a hospital's console; return its address and a link to its first account."""
        node = self._node(site)
        listen = f"127.0.0.1:{_free_port(8500)}"
        command = ["node", "console", "--listen", listen, "--dir", node]
        log, where = node / "log" / "pages.log", node / "console.url"
        processes.start(f"{site}'s console", command, log)
        _wait("the console to answer", processes, where.exists, log)
        role = ("--role", "administrator", "--role", "reviewer", "--role", "data_manager")
        made = self._consilia(
            "node", "console-invite", *role, "--dir", node, "--json", quiet=True
        )
        return where.read_text().strip(), json.loads(made)["link"]

    # ---- means -------------------------------------------------------------------------------

    def _node(self, site):
        return self.folder / site

    def _consilia(self, *words, stdin="", quiet=False, loud=False):
        """Run one command as a person would; return what it prints."""
        if not quiet:
            _show(*words)
        done = subprocess.run(
            [*CONSILIA, *map(str, words)],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise DemoError(
                f"consilia {' '.join(map(str, words))} failed ({done.returncode}): "
                f"{(done.stderr or done.stdout).strip()}"
            )
        if loud:
            print("    " + done.stdout.strip())
        return done.stdout

    def _wait_online(self, processes, sites):
        def online():
            found = json.loads(
                self._consilia("hub", "sites", "--dir", self.hub, "--json", quiet=True)
            )
            return {view["name"] for view in found if view["online"]} >= set(sites)

        _wait("the hospitals to be online", processes, online, self.folder)

    def _remember_researcher(self):
        path = self.folder / "researcher.env"
        path.touch(mode=0o600)
        names = ("CONSILIA_URL", "CONSILIA_TOKEN", "CONSILIA_CA")
        path.write_text(
            "".join(f"export {name}='{self.environment[name]}'\n" for name in names)
        )


def _options():
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__.splitlines()[0])
    parser.add_argument("--serve", action="store_true", help="leave everything running")
    parser.add_argument("--rounds", type=int, default=20, help="default 20, at least 8")
    parser.add_argument("--dir", default=str(ROOT / "demo-run"), help="default demo-run")
    options = parser.parse_args()
    if options.rounds < 8:
        parser.error("--rounds: one hospital leaves and comes back, so at least 8")
    return options


def _fresh_folder(parent):
    parent.mkdir(parents=True, exist_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S-")
    folder = Path(tempfile.mkdtemp(prefix=stamp, dir=parent)).absolute()
    latest = parent / "latest"
    if latest.is_symlink() or not latest.exists():
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name)
    return folder


def _free_port(wanted):
    """Return `wanted` when it is free, else a port the system chooses."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return probe.getsockname()[1]
    raise DemoError("no TCP port is free on this machine")


def _sandbox_works():
    if shutil.which("bwrap") is None:
        return False
    trial = subprocess.run(
        ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--cap-drop", "ALL",
         "--ro-bind", "/", "/", "true"],
        capture_output=True, check=False,
    )  # fmt: skip
    return trial.returncode == 0


def _answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
        return True
    return False


def _wait(what, processes, ready, log):
    def look():
        _check(processes)
        return ready()

    try:
        _until(what, look)
    except DemoError as e:
        raise DemoError(f"{e}; see {log}") from None


def _until(what, ready, patience=30.0):
    deadline = time.monotonic() + patience
    while not ready():
        if time.monotonic() > deadline:
            raise DemoError(f"waited {patience:.0f} s for {what}")
        time.sleep(0.1)


def _check(processes):
    for name, status in processes.ended().items():
        raise DemoError(f"{name} ended with status {status}")


def _title(text):
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def _show(*words):
    quoted = (f"'{w}'" if " " in str(w) else str(w) for w in words)
    print(f"  $ consilia {' '.join(quoted)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
