"""The people's side of a simulated hub: its REST API without a network, and a client of it."""

import asyncio
import os
import sys
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import httpx
from msgspec import structs

from consilia.errors import ConfigError
from consilia.hub.access import Access
from consilia.hub.app import Hub
from consilia.hub.clock import LoopClock
from consilia.hub.config import HubConfig, PeopleRules
from consilia.hub.people.service import make_people
from consilia.hub.rest.api import make_app
from consilia.hub.rest.services import Services
from consilia.hub.telemetry import Metrics, make_log
from consilia.sdk.api import Api
from consilia.sdk.client import Client
from consilia.sim.parts import URL
from consilia.wire import people
from consilia.wire.v1 import Arguments, Plan, Study

T = TypeVar("T")
_TIMEOUT = 30.0  # seconds; nothing waits for a network here


class Staff(Protocol):
    """The people of all simulated sites, who let the one who simulates do what they ask."""

    def take_part(self, study: Study) -> None:
        """Accept a study at its sites."""

    def allow(self, plan: Plan, study: Study, arguments: Arguments) -> None:
        """Approve a plan at a study's sites, with these values of arguments."""

    def said(self, job: str) -> str:
        """Return what a site last said went wrong in a job, with the traceback; or ""."""


async def serve(hub: Hub, access: Access) -> Any:
    """Return the ASGI application of a hub; nobody waits for how often they may ask."""
    clock = LoopClock()
    config = HubConfig(name="simulation", people=PeopleRules(requests_per_second=0))
    known = await asyncio.to_thread(
        make_people,
        config,
        hub.store,
        access,
        origin=lambda: URL,
        now=clock.now,
        random_bytes=os.urandom,
    )
    return make_app(
        Services(
            config=config,
            store=hub.store,
            access=access,
            people=known,
            blobs=hub.blobs,
            engine=hub.engine,
            metrics=Metrics(),
            log=make_log(sys.stderr, "error"),
            now=clock.now,
            random_bytes=os.urandom,
            stopping=asyncio.Event(),
            probes={},
        )
    )


class Inside(httpx.BaseTransport):
    """Requests to an ASGI application that runs on the event loop of another thread."""

    def __init__(self, app: Any, loop: asyncio.AbstractEventLoop) -> None:
        """Raise nothing yet."""
        self._app = httpx.ASGITransport(app)
        self._loop = loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Let the application answer, and wait for all of the answer."""
        request.read()
        return wait(self._loop, self._answer(request))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        asked = httpx.Request(
            request.method, request.url, headers=request.headers, content=request.content
        )
        answer = await self._app.handle_async_request(asked)
        content = b"".join([piece async for piece in answer.aiter_raw()])
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)


def wait(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on another thread's loop and return what it returns; Ctrl-C ends it.

    ConfigError when the loop is closed.
    """
    if loop.is_closed():
        work.close()
        raise ConfigError("the simulated federation is closed; make another one")
    found = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return found.result()
    except BaseException:
        found.cancel()
        raise


class SimulatedClient(Client):
    """A client whose hub and sites are in this process, and whose sites agree to everything.

    What a real site decides in its own time is decided when it is asked for: a study is
    accepted when it is submitted, a plan approved with the arguments of whoever runs it.
    """

    def __init__(self, token: str, ca: str, transport: Inside, staff: Staff) -> None:
        """Made by `Federation`."""
        self.url = URL
        self._staff = staff
        self._api = Api(URL, token, ca, _TIMEOUT, time.sleep, transport=transport)

    def submit_study(self, name: str) -> people.StudyView:
        """Lock the draft; its sites accept it."""
        view = super().submit_study(name)
        self._staff.take_part(view.study)
        return view

    def validate(self, experiment: people.Experiment) -> people.ValidationView:
        """Tell what would keep the experiment from starting, without starting it."""
        self._allow(experiment, {})
        return super().validate(experiment)

    def start(self, experiment: people.Experiment) -> people.JobView:
        """Run an experiment: make a job."""
        self._allow(experiment, {})
        return super().start(experiment)

    def change_arguments(self, id: str, arguments: Arguments) -> people.JobView:
        """Set arguments from the next round on; the others stay."""
        self._allow(super().job(id).experiment, arguments)
        return super().change_arguments(id, arguments)

    def job(self, id: str) -> people.JobView:
        """Return one job with its rounds; its cause ends with what a plan raised."""
        view = super().job(id)
        said = self._staff.said(id) if view.state == "failed" else ""
        return structs.replace(view, cause=f"{view.cause}\n{said}") if said else view

    def _allow(self, experiment: people.Experiment, more: Arguments) -> None:
        plan = self.plan(experiment.plan).plan
        if plan is not None:
            study = self.study(experiment.study).study
            self._staff.allow(plan, study, {**experiment.arguments, **more})
