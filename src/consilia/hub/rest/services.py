"""What the routes work with, as one record that the application hands to each of them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from litestar.di import NamedDependency
from litestar.params import SkipValidation

from consilia.hub.access import Access
from consilia.hub.blobs import Blobs
from consilia.hub.config import HubConfig
from consilia.hub.engine import Engine
from consilia.hub.people.roles import Caller
from consilia.hub.people.service import People
from consilia.hub.probes import Probe
from consilia.hub.rest.streams import Streams
from consilia.hub.rest.together import Together
from consilia.hub.store import Store
from consilia.hub.telemetry import Log, Metrics


@dataclass(frozen=True, slots=True)
class FrameAsk:
    """Somebody asks for a part of a model version's frame: `range` is the header."""

    who: Caller
    id: str
    range: str
    at: float


@dataclass(frozen=True, slots=True)
class FrameSpan:
    """The bytes that they get: `start` to before `stop` of a frame's `size`."""

    digest: str
    size: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Services:
    """The hub's parts, as the people's routes see them."""

    config: HubConfig
    store: Store
    access: Access
    people: People
    blobs: Blobs
    engine: Engine
    metrics: Metrics
    log: Log
    now: Callable[[], float]
    random_bytes: Callable[[int], bytes]
    stopping: asyncio.Event  # long polls end when it is set
    probes: Mapping[str, Probe]  # of readiness
    # Python 3.11's parser counts its depth once for all threads: one plan at a time.
    parsing: asyncio.Lock = field(default_factory=asyncio.Lock)
    judging: asyncio.Lock = field(default_factory=asyncio.Lock)  # of files: see hub.retention
    streams: Streams = field(default_factory=Streams)  # of jobs' events
    reads: Together[FrameAsk, FrameSpan] = field(default_factory=Together)  # of models' frames
    pieces: dict[str, Together[FrameSpan, bytes]] = field(default_factory=dict)  # by digest
    arriving: Counter[str] = field(default_factory=Counter)  # bytes on their way, by person


Hub = NamedDependency[SkipValidation[Services]]  # how a route asks for it
