"""The stop button: a job that the site's staff stopped does not go on with the next round."""

import time
from pathlib import Path

import pytest

from consilia.errors import ConfigError, NotFound
from consilia.node import stops
from consilia.wire.v1 import Declined, Result
from nodekit import base_model, lease, make_plan, node, until


async def test_a_stopped_job_stays_stopped_until_it_is_resumed(tmp_path: Path) -> None:
    plan = make_plan()
    async with node(tmp_path) as x:
        x.accept(plan)
        model = x.hub.publish(base_model())
        async with x.running():
            first = lease(x.hub, plan, model=model, arguments={"wait": 60.0})
            x.hub.assign(first)
            await until(lambda: [t for t in x.agent.status().tasks if t.phase == "training"])
            stops.stop(x.store, "job-1", actor="mara", now=x.now(), reason="looks odd")
            asked = time.monotonic()
            await until(lambda: x.hub.settled(first.id))
            # of 60; nobody told the agent: it looked by itself
            assert time.monotonic() - asked < 40
            second = lease(x.hub, plan, model=model, round=2)
            other = lease(x.hub, plan, model=model, job="job-2")
            x.hub.assign(second, other)
            await until(lambda: x.hub.settled(second.id) and x.hub.settled(other.id))
            assert isinstance(x.hub.settled(second.id), Declined)
            assert isinstance(x.hub.settled(other.id), Result)
            stops.resume(x.store, "job-1", actor="mara", now=x.now())
            third = lease(x.hub, plan, model=model, round=3)
            x.hub.assign(third)
            await until(lambda: x.hub.settled(third.id))
            assert isinstance(x.hub.settled(third.id), Result)
        assert x.runs.tasks == ["job-1.1", "job-2.1", "job-1.3"]
        assert "mara has stopped this job here" in " ".join(x.details("task.refuse"))
        for job, reason in (("", "r"), ("job-1", " "), ("x" * 101, "r"), ("a\n", "r")):
            with pytest.raises(ConfigError):
                stops.stop(x.store, job, actor="mara", now=1.0, reason=reason)
        with pytest.raises(NotFound):
            stops.resume(x.store, "job-9", actor="mara", now=1.0)
