"""The hub's REST API as typed Python: every route one method, every answer a record of
`wire.people`, every refusal the `consilia.errors` class it was at the hub.

    client = Client()                       # CONSILIA_URL, _TOKEN, _CA or the saved profile
    for site in client.sites():
        print(site.name, site.online)

TLS is verified against the hub's own CA, never against none. A request is repeated only when
it is a GET and the line or the hub was down for a moment.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import msgspec

from consilia.errors import ConfigError, TransferError
from consilia.sdk.api import Api, decode
from consilia.sdk.profile import load_profile, profile_path
from consilia.wire import frames, people
from consilia.wire.statistics import AskStatistics, StatisticsView
from consilia.wire.v1 import Arguments, Plan, Study

if TYPE_CHECKING:
    from consilia.sdk.analytics import Analytics
    from consilia.sdk.areas import Deployments, Experiments, Models, PrivacyArea
    from consilia.sdk.datasets import Datasets
    from consilia.sdk.people import People
    from consilia.sdk.statistics import Described
    from consilia.wire.statistics import Noise, What

T = TypeVar("T")
_CHUNK = 1 << 18  # bytes moved at a time
_PAGE = 500  # records asked for at once
_TRIES = 4  # of a GET
_DOWN = (502, 503, 504)


class Client:
    """A connection to one hub as one person. Close it, or use it as a context manager."""

    def __init__(  # noqa: PLR0913 - where, who, and what tests give
        self,
        url: str | None = None,
        token: str | None = None,
        ca: str | Path | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        profile: Path | None = None,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Arguments win over environment, environment over profile.

        `ca` is the path of the hub's CA certificate, or its PEM text. `timeout` bounds, in
        seconds, every wait for the hub, except the wait a long poll asks for.
        """
        saved = load_profile(profile or profile_path(environ))
        self.url = _needed("URL", url, environ, saved.url if saved else None).rstrip("/")
        secret = _needed("TOKEN", token, environ, saved.token if saved else None)
        bearer: str | Callable[[], str] = secret
        if saved is not None and saved.refresh and secret == saved.token:
            from consilia.sdk.session import ProfileSession  # noqa: PLC0415

            where = profile or profile_path(environ)
            bearer = ProfileSession(saved, where, timeout, time.time).token
        pem = _needed("CA", str(ca) if ca else None, environ, saved.ca if saved else None)
        self._api = Api(self.url, bearer, pem, timeout, sleep)
        if "IPython" in sys.modules:
            from consilia.sdk.notebook import show_records  # noqa: PLC0415  # only in notebooks

            show_records()

    @cached_property
    def experiments(self) -> "Experiments":
        """Experiments: create, list, get."""
        from consilia.sdk.areas import Experiments  # noqa: PLC0415  # numpy takes time

        return Experiments(self)

    @cached_property
    def models(self) -> "Models":
        """The model registry: list, get, get_best, card, set_stage."""
        from consilia.sdk.areas import Models  # noqa: PLC0415

        return Models(self)

    @cached_property
    def privacy(self) -> "PrivacyArea":
        """What experiments cost in privacy: estimate_cost, get_budget, get_audit_log."""
        from consilia.sdk.areas import PrivacyArea  # noqa: PLC0415

        return PrivacyArea(self)

    @cached_property
    def deployments(self) -> "Deployments":
        """Models at work in this process: create(...).predict(...)."""
        from consilia.sdk.areas import Deployments  # noqa: PLC0415

        return Deployments(self)

    @cached_property
    def datasets(self) -> "Datasets":
        """What sites offer: list, mock."""
        from consilia.sdk.datasets import Datasets  # noqa: PLC0415

        return Datasets(self)

    @cached_property
    def accounts(self) -> "People":
        """The people of the hub: accounts, invitations, requests for access, keys."""
        from consilia.sdk.people import People  # noqa: PLC0415

        return People(self._api)

    @cached_property
    def analytics(self) -> "Analytics":
        """Experiments side by side: compare_experiments, hospital_contributions."""
        from consilia.sdk.analytics import Analytics  # noqa: PLC0415

        return Analytics(self)

    def close(self) -> None:
        """Close the connections."""
        self._api.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    # ---- people and sites --------------------------------------------------------------------

    def whoami(self) -> people.WhoamiView:
        """Tell whose token this is."""
        return self._api.get("/whoami", people.WhoamiView)

    def tokens(self) -> list[people.TokenView]:
        """List API tokens, without their secrets (operator)."""
        return self._api.all("/tokens", people.Page[people.TokenView])

    def new_token(self, name: str, role: str, days: int = 90) -> people.TokenView:
        """Make an API token; its secret is in the answer, once (operator)."""
        return self._api.post(
            "/tokens", people.TokenView, people.NewToken(name=name, role=role, days=days)
        )

    def revoke_token(self, id: str) -> None:
        """Revoke an API token; it fails from its next request on (operator)."""
        self._api.send("DELETE", f"/tokens/{_part(id)}")

    def sites(self) -> list[people.SiteView]:
        """List the sites with their state."""
        return self._api.all("/sites", people.Page[people.SiteView])

    def invite(self, site: str, hours: float = 72.0) -> people.JoinTokenView:
        """Make a one-time join token for a site (operator)."""
        return self._api.post(
            "/sites", people.JoinTokenView, people.Invite(site=site, hours=hours)
        )

    def revoke_site(self, site: str) -> people.SiteView:
        """Shut a site out; works on its next request (operator)."""
        return self._api.post(f"/sites/{_part(site)}/revoke", people.SiteView)

    # ---- studies and plans -------------------------------------------------------------------

    def studies(self) -> list[people.StudyView]:
        """List the studies the caller may see."""
        return self._api.all("/studies", people.Page[people.StudyView])

    def study(self, name: str) -> people.StudyView:
        """Return one study."""
        return self._api.get(f"/studies/{_part(name)}", people.StudyView)

    def offers(self, study: str) -> list[people.OfferView]:
        """List what the sites that accepted a study offer it."""
        return self._api.get(f"/studies/{_part(study)}/datasets", list[people.OfferView])

    def create_study(self, study: Study) -> people.StudyView:
        """Make a draft."""
        return self._api.post("/studies", people.StudyView, study)

    def edit_study(self, study: Study) -> people.StudyView:
        """Replace a draft of that name."""
        body = self._api.send("PUT", f"/studies/{_part(study.name)}", study)
        return msgspec.json.decode(body, type=people.StudyView)

    def submit_study(self, name: str) -> people.StudyView:
        """Lock the draft and offer it to its sites."""
        return self._api.post(f"/studies/{_part(name)}/submit", people.StudyView)

    def revise_study(self, study: Study) -> people.StudyView:
        """Offer a submitted study under changed terms; each of its sites decides anew."""
        path = f"/studies/{_part(study.name)}/revise"
        return self._api.post(path, people.StudyView, study)

    def close_study(self, name: str) -> people.StudyView:
        """End a study: no job starts in it any more."""
        return self._api.post(f"/studies/{_part(name)}/close", people.StudyView)

    def plans(self, study: str | None = None) -> list[people.PlanView]:
        """List the plans of one study, or of all the caller may see."""
        return self._api.all(
            "/plans", people.Page[people.PlanView], {"study": study} if study else {}
        )

    def plan(self, digest: str) -> people.PlanView:
        """Return one plan with its source."""
        return self._api.get(f"/plans/{_part(digest)}", people.PlanView)

    def submit_plan(self, study: str, plan: Plan) -> people.PlanView:
        """Offer a plan to the sites of a study."""
        return self._api.post(
            "/plans", people.PlanView, people.SubmitPlan(study=study, plan=plan)
        )

    # ---- jobs --------------------------------------------------------------------------------

    def validate(self, experiment: people.Experiment) -> people.ValidationView:
        """Tell what would keep the experiment from starting, without starting it."""
        return self._api.post("/experiments/validate", people.ValidationView, experiment)

    def estimate_privacy(
        self, experiment: people.Experiment, sites: Sequence[str] | None = None
    ) -> people.PrivacyEstimateView:
        """Tell the epsilon that the experiment would add at each site of its study.

        With `sites` the hub is not asked: it computes here, for a study not submitted yet.
        """
        if sites is None:
            return self._api.post(
                "/experiments/privacy", people.PrivacyEstimateView, experiment
            )
        from consilia.privacy.estimate import estimate  # noqa: PLC0415  # numpy takes time

        return estimate(experiment, sites)

    def start(self, experiment: people.Experiment) -> people.JobView:
        """Run an experiment: make a job."""
        return self._api.post("/jobs", people.JobView, experiment)

    def jobs(self) -> list[people.JobView]:
        """List the jobs the caller may see, newest first."""
        return self._api.all("/jobs", people.Page[people.JobView])

    def job(self, id: str) -> people.JobView:
        """Return one job with its rounds."""
        return self._api.get(f"/jobs/{_part(id)}", people.JobView)

    def stop(self, id: str) -> people.JobView:
        """Stop a job; accepted updates of its open round are kept."""
        return self._api.post(f"/jobs/{_part(id)}/stop", people.JobView)

    def pause(self, id: str) -> people.JobView:
        """Let a job finish what is open and open nothing more."""
        return self._api.post(f"/jobs/{_part(id)}/pause", people.JobView)

    def roll_back(self, id: str, round: int) -> people.JobView:
        """Let the next round of an idle job start from the model of an earlier one."""
        body = people.RollBack(round=round)
        return self._api.post(f"/jobs/{_part(id)}/rollback", people.JobView, body)

    def evaluations(self, id: str) -> list[people.EvaluationView]:
        """Return what the sites have found of a job's models, oldest first."""
        return self._api.all(
            f"/jobs/{_part(id)}/evaluations", people.Page[people.EvaluationView]
        )

    def ask_statistics(self, asked: AskStatistics) -> people.JobView:
        """Ask the sites of a study for sums over their records, as a job of one round."""
        return self._api.post("/statistics", people.JobView, asked)

    def job_statistics(self, id: str) -> StatisticsView:
        """Return what the sites have told; NotFound until they have."""
        return self._api.get(f"/jobs/{_part(id)}/statistics", StatisticsView)

    def statistics(  # noqa: PLR0913 - by keyword
        self,
        study: str,
        columns: Sequence[str] = (),
        *,
        by: str = "",
        what: "Sequence[What]" = ("count", "missing", "mean", "sd"),
        where: str = "",
        levels: Mapping[str, Sequence[str]] | None = None,
        edges: Mapping[str, Sequence[float]] | None = None,
        tables: Sequence[tuple[str, str]] = (),
        aggregation: Literal["secure", "plain"] | None = None,
        deadline: float = 600.0,
        bounds: Mapping[str, Sequence[float]] | None = None,
        dp: "Noise | None" = None,
    ) -> "Described":
        """Describe a study's patients over all sites, and wait for it: Table 1 and more.

        `levels` names what is counted of a column, `edges` the bins of its histogram, or the
        cut points where it is `by`; without them the mock twins on offer say. With `dp` every
        number has noise, which each site's ledger is charged for; means need `bounds`.
        ConsiliaError when too few sites tell anything.
        """
        from consilia.sdk import statistics  # noqa: PLC0415  # only whoever asks needs it

        asked = statistics.question(
            study,
            columns,
            by=by,
            what=what,
            where=where,
            levels=levels,
            edges=edges,
            tables=tables,
            aggregation=aggregation,
            deadline=deadline,
            bounds=bounds,
            dp=dp,
        )
        return statistics.ask(self, asked)

    def resume(self, id: str, rounds: int | None = None) -> people.JobView:
        """Go on with a stopped or failed job, perhaps with more rounds."""
        return self._api.post(
            f"/jobs/{_part(id)}/resume", people.JobView, people.ResumeJob(rounds=rounds)
        )

    def change_arguments(self, id: str, arguments: Arguments) -> people.JobView:
        """Set arguments from the next round on; the others stay."""
        return self._api.post(
            f"/jobs/{_part(id)}/arguments",
            people.JobView,
            people.ChangeArguments(arguments=arguments),
        )

    def events(
        self,
        id: str,
        after: int = 0,
        wait: float = 0.0,
    ) -> list[people.EventView]:
        """Return a job's events after number `after`, waiting up to `wait` s for the first."""
        body = self._api.send(
            "GET",
            f"/jobs/{_part(id)}/events",
            query={"after": after, "wait": wait},
            more=wait,
        )
        return list(decode(body, people.Page[people.EventView]).items)

    def job_audit(self, id: str) -> list[people.AuditView]:
        """Return the audit lines about a job and its model versions, oldest first."""
        found: list[people.AuditView] = []
        after = 0
        while True:
            query = {"after": after, "limit": _PAGE}
            body = self._api.send("GET", f"/jobs/{_part(id)}/audit", query=query)
            page = decode(body, people.Page[people.AuditView])
            found += page.items
            if page.next is None:
                return found
            after = int(page.next)

    # ---- models ------------------------------------------------------------------------------

    def model_versions(
        self, job: str | None = None, stage: people.Stage | None = None
    ) -> list[people.ModelView]:
        """List the model versions the caller may see: all, of one job, at one stage."""
        wanted = {"job": job, "stage": stage}
        query = {name: value for name, value in wanted.items() if value is not None}
        return self._api.all("/models", people.Page[people.ModelView], query)

    def model(self, id: str) -> people.ModelView:
        """Return one model version with its lineage."""
        return self._api.get(f"/models/{_part(id)}", people.ModelView)

    def model_card(self, id: str) -> people.ModelCard:
        """Return all that is on record of a model version, and what to beware of."""
        return self._api.get(f"/models/{_part(id)}/card", people.ModelCard)

    def set_stage(self, id: str, stage: people.Stage, reason: str) -> people.ModelView:
        """Propose a model version, release it or retire it.

        Whoever made or proposed it cannot release it: that takes a second person.
        """
        decision = people.SetStage(stage=stage, reason=reason)
        return self._api.post(f"/models/{_part(id)}/stage", people.ModelView, decision)

    def download_model(self, id: str, path: Path) -> people.ModelView:
        """Write a model version's frame to `path`, checked byte by byte against its digest.

        A broken line is taken up where it broke. `path` appears only when it is whole.
        """
        view = self.model(id)
        part = path.with_name(path.name + ".part")
        verifier = frames.Verifier(view.bytes, expected=view.digest)
        try:
            with part.open("wb") as out:
                self._api.download(
                    f"/models/{_part(id)}/frame", view.bytes, verifier, out.write
                )
                out.flush()
                os.fsync(out.fileno())
            if not verifier.complete:
                raise TransferError(f"model {id} arrived cut short; try again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return view

    def upload_frame(self, path: Path) -> people.FrameView:
        """Upload a base model's frame; answers its digest."""
        return decode(self._api.upload("/frames", path), people.FrameView)

    # ---- audit -------------------------------------------------------------------------------

    def audit(self, after: int = 0, limit: int | None = None) -> Iterator[people.AuditView]:
        """Yield the hub's audit lines after number `after` (operator, auditor)."""
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            body = self._api.send("GET", "/audit", query={"after": after, "limit": size})
            page = decode(body, people.Page[people.AuditView])
            yield from page.items
            if page.next is None:
                return
            after = int(page.next)
            left = None if left is None else left - len(page.items)

    def verify_audit(
        self, length: int | None = None, digest: str = ""
    ) -> people.AuditCheckView:
        """Have the hub check its whole chain (operator, auditor).

        `length` and `digest` are a head that was kept earlier: the chain must still hold it.
        """
        query = None if length is None else {"length": length, "digest": digest}
        body = self._api.send("GET", "/audit/verify", query=query)
        return decode(body, people.AuditCheckView)


def _needed(what: str, given: str | None, environ: Mapping[str, str], saved: str | None) -> str:
    value = given or environ.get(f"CONSILIA_{what}") or saved
    if not value:
        raise ConfigError(
            f"the hub's {what} is not known: give it, set CONSILIA_{what}, or run: "
            "consilia login"
        )
    return value


def _part(text: str) -> str:
    """Return `text` as one segment of a path, whatever is in it."""
    from urllib.parse import quote  # noqa: PLC0415

    return quote(text, safe="")
