"""The route of what was said of jobs: what plans printed, what the agent noted."""

from litestar import get
from litestar.params import FromQuery

from consilia.node import joblogs
from consilia.node.console.guard import allow
from consilia.node.console.services import Here
from consilia.wire.console.runs import JobLine, JobLogView


# What a plan printed may be patients' values: for those who may see a dataset's records.
@get("/job-log", opt=allow("data_manager", "dpo"), sync_to_thread=True)
def get_job_log(
    here: Here,
    job: FromQuery[str] = "",
    level: FromQuery[str] = "info",
    before: FromQuery[float] = 0.0,
    limit: FromQuery[int] = 100,
) -> JobLogView:
    """Return what plans printed and the agent said of jobs, newest first; stays at the site."""
    found = joblogs.read(here.directory, job=job, level=level, before=before, last=limit)
    lines = tuple(JobLine(x.at, x.level, x.job, x.who, x.text) for x in reversed(found))
    older = lines[-1].at if len(lines) == limit else None
    return JobLogView(lines, joblogs.jobs(here.directory), older)


ROUTES = (get_job_log,)
