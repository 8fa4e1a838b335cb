"""Live progress of a job: bars on a terminal or in a notebook, a line a round elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from consilia.wire.people import JobView, RoundView

if TYPE_CHECKING:
    from tqdm import tqdm

_TOLD = ("waiting", "paused", "done", "stopped", "failed")  # states that are said
Show = Callable[[JobView], None]


@contextmanager
def display(wanted: bool, job: JobView) -> Iterator[Show]:
    """Yield a function that shows a job as it is now; one that shows nothing if not wanted."""
    if not wanted:
        yield lambda _job: None
    elif _in_notebook() and (make := _maker()) is not None:
        with _notebook_bar(job, make) as show:
            yield show
    elif sys.stderr.isatty():
        with _bars(job) as show:
            yield show
    else:
        yield _Lines()


class _Lines:
    """One line on standard error for each closed round, and when the job waits or ends."""

    def __init__(self) -> None:
        self._rounds = 0
        self._said = ""

    def __call__(self, job: JobView) -> None:
        closed = [r for r in job.rounds if r.round > 0]
        for view in closed[self._rounds :]:
            _print(f"round {view.round}/{job.experiment.rounds}: {summary(view)}")
            for alarm in view.alarms:
                _print(f"ALARM in round {view.round}: {alarm}")
        self._rounds = len(closed)
        state = f"{job.state}: {job.cause}" if job.cause else job.state
        if state != self._said and job.state in _TOLD:
            _print(f"job {job.id} {state}")
            self._said = state


@contextmanager
def _bars(job: JobView) -> Iterator[Show]:
    from rich.console import Console  # noqa: PLC0415  # slow to import, and only for people
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description:<16}", markup=False),
        BarColumn(30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[what]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=8) as progress:
        total = job.experiment.rounds
        whole = progress.add_task("rounds", total=total, what="")
        sites = {}

        def show(job: JobView) -> None:
            last = job.rounds[-1] if job.rounds else None
            what = summary(last) if last and last.round else (job.cause or job.state)
            done = max((r.round for r in job.rounds), default=0)
            progress.update(whole, completed=done, total=job.experiment.rounds, what=what)
            for site, state in sorted(job.sites.items()):
                if site not in sites:
                    sites[site] = progress.add_task(f"  {site}", total=100, what="")
                fraction = 1.0 if state == "reported" else job.progress.get(site, 0.0)
                progress.update(sites[site], completed=round(100 * fraction), what=state)

        show(job)
        yield show


def _in_notebook() -> bool:
    """Whether this process is a notebook's kernel, not one that merely imported its package."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _maker() -> Callable[..., "tqdm[NoReturn]"] | None:
    """Return what makes a bar: a widget where the notebook has them, text elsewhere."""
    try:
        import ipywidgets  # noqa: F401, PLC0415
        from tqdm.notebook import tqdm_notebook  # noqa: PLC0415  # slow to import
    except ImportError:
        pass
    else:
        return tqdm_notebook
    try:
        from tqdm import tqdm  # noqa: PLC0415
    except ImportError:
        return None
    return tqdm


@contextmanager
def _notebook_bar(job: JobView, make: Callable[..., "tqdm[NoReturn]"]) -> Iterator[Show]:
    """One bar of the rounds."""
    with make(total=job.experiment.rounds, desc="rounds", unit="round") as bar:

        def show(job: JobView) -> None:
            last = job.rounds[-1] if job.rounds else None
            bar.total = job.experiment.rounds
            bar.n = last.round if last else 0
            what = summary(last) if last and last.round else (job.cause or job.state)
            bar.set_postfix_str(what)

        show(job)
        yield show


def summary(view: RoundView) -> str:
    """Return one closed round in one line."""
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in sorted(view.metrics.items()))
    counts = f"{len(view.sites)} sites  {view.records} records  {view.seconds:.2f} s"
    epsilon = "" if view.epsilon is None else f"epsilon {view.epsilon:.3g}"
    alarms = f"{len(view.alarms)} ALARMS" if view.alarms else ""
    return "  ".join(filter(None, (metrics, counts, epsilon, alarms)))


def _print(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
