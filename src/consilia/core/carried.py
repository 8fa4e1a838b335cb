"""What is known of an update on its way out: how long it can be, on which grid, how noised.

A `Carried` goes with an update from stage to stage. Each stage is a function that takes the
record and returns the next, or refuses an order that would make a promise untrue:

    start -> fed_back -> clipped -> coded                      plain, compressed
    start -> fed_back -> clipped -> gridded                    masked, of 8 bits
    start -> clipped -> gridded -> noised                      masked, with shares of noise
    start -> clipped -> gridded -> noised -> fed_back -> coded plain, noised at the site

| stage | `bound` after it | refused |
|---|---|---|
| `fed_back` | none: what was left out before has no bound | before noise, once clipped |
| `clipped` | C | |
| `coded` | bound times what the codec expands; after noise nothing changes | |
| `gridded` | bound + what rounding adds; after noise the same | once coded |
| `noised` | the same; `noise` is the deviation over it | without bound or grid; twice |

`bound` is the L2 norm of what one site contributes, at most: the sensitivity at client level.
Noise is added to what is bounded; whatever happens after it is post-processing, of which
neither bound nor noise can be lost.
"""

from dataclasses import dataclass, replace
from math import inf, isfinite, sqrt

from consilia.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Carried:
    """What holds for an update after the stages in `path`, first stage first."""

    bound: float = inf  # L2 norm of the site's contribution, at most
    step: float = 0.0  # coarsest step of the public grid that its values lie on; 0: none
    noise: float = 0.0  # standard deviation of its noise over `bound`
    coded: bool = False  # quantised in blocks, or only the largest values kept
    path: tuple[str, ...] = ()

    def text(self) -> str:
        """Return the record as the audit trail shows it."""
        known = f", norm at most {self.bound:.6g}" if self.bound < inf else ""
        noised = f", noise {self.noise:.6g} of it" if self.noise else ""
        return f"{' > '.join(self.path) or 'as it is'}{known}{noised}"


def fed_back(given: Carried) -> Carried:
    """Add what earlier rounds left out; ConfigError where a bound would be lost by it."""
    if not given.noise and given.bound < inf:
        raise ConfigError(
            "error feedback after the clip would leave the update unbounded; it comes before"
        )
    return replace(given, path=(*given.path, "feedback"))


def clipped(given: Carried, clip: float) -> Carried:
    """Scale to an L2 norm of at most `clip`."""
    if not (isfinite(clip) and clip > 0):
        raise ConfigError(f"an update was to be clipped to {clip!r}; needed a number above 0")
    bound = given.bound if given.noise else min(given.bound, clip)
    return replace(given, bound=bound, path=(*given.path, f"clip {clip:g}"))


def coded(given: Carried, word: str, expansion: float) -> Carried:
    """Quantise in blocks, or keep the largest values: at most `expansion` times as long."""
    bound = given.bound if given.noise else given.bound * expansion
    return replace(given, bound=bound, step=0.0, coded=True, path=(*given.path, word))


def gridded(given: Carried, step: float, size: int, *, nearest: bool) -> Carried:
    """Round `size` values to multiples of a `step` that everybody knows.

    To the nearest multiple a value moves by half a step at most, at random by one.
    """
    if given.coded:
        raise ConfigError("values coded in blocks lie on no public grid: no noise fits them")
    added = step * sqrt(size) * (0.5 if nearest else 1.0)
    bound = given.bound if given.noise else given.bound + added
    grid = max(given.step, step)
    return replace(given, bound=bound, step=grid, path=(*given.path, f"grid {step:.3g}"))


def noised(given: Carried, deviation: float) -> Carried:
    """Add noise of a standard deviation, in the values' own unit, on the grid."""
    if not given.step or not given.bound < inf or given.noise:
        raise ConfigError(
            f"noise was to be added to an update that is {given.text()}: needed one that is "
            "clipped and on a grid, and not noised before"
        )
    noise = deviation / given.bound
    return replace(given, noise=noise, path=(*given.path, "noise"))
