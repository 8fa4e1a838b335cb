"""Strategies: what a round's mean does to the model, as records of functions.

A strategy works on flat chunks of float tensors, element by element, so a model of any size
streams through in constant memory. Its state between rounds is `slots`: arrays like the model,
one for each name, which the caller stores with the model version, so resuming is free. Integer
and bool tensors are not stepped: they take the mean.

With x the old model, mean = sum_k (n_k / n) x_k the record-weighted mean of the sites' models
x_k, and d = mean - x:

| strategy | rule | source |
|---|---|---|
| fedavg | x' = mean | McMahan et al. 2017, algorithm 1 |
| fedprox | x' = mean; sites add mu / 2 (w - x)^2 to the loss | Li et al. 2020, algorithm 2 |
| fedavgm | m' = momentum m + d, x' = x + server_lr m' | Hsu et al. 2019 |
| fedadagrad | v' = v + d^2 | Reddi et al. 2021, algorithm 2 |
| fedyogi | v' = v - (1 - beta2) d^2 sign(v - d^2) | Reddi et al. 2021, algorithm 2 |
| fedadam | v' = beta2 v + (1 - beta2) d^2 | Reddi et al. 2021, algorithm 2 |

The last three: m' = beta1 m + (1 - beta1) d, x' = x + server_lr m' / (sqrt(v') + tau), with
m = 0 and v = tau^2 before the first round and no bias correction, as published.

Sources: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized
Data, AISTATS 2017. Hsu, Qi, Brown, Measuring the Effects of Non-Identical Data Distribution
for Federated Visual Classification, arXiv:1909.06335. Li et al., Federated Optimization in
Heterogeneous Networks, MLSys 2020. Reddi et al., Adaptive Federated Optimization, ICLR 2021.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from math import isfinite
from typing import Protocol, TypeVar

import numpy as np

from consilia.algo.aggregate import Accumulator
from consilia.core.events import Scalar
from consilia.core.weights import TensorSpec
from consilia.errors import ConfigError

Options = Mapping[str, float]
Arguments = Mapping[str, Scalar]
Slots = dict[str, Accumulator]


@dataclass(frozen=True, slots=True)
class Option:
    """A number a person may set: its default and its range [low, high] or [low, high)."""

    default: float
    low: float
    high: float
    low_open: bool = False
    high_open: bool = False

    def admits(self, value: float) -> bool:
        """Return whether `value` is in the range (NaN and infinity never are)."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return isfinite(value) and above and below

    def range(self) -> str:
        """Return the range in words of mathematics."""
        start, end = "(" if self.low_open else "[", ")" if self.high_open else "]"
        return f"{start}{self.low:g}, {self.high:g}{end}"


@dataclass(frozen=True, slots=True)
class Strategy:
    """One strategy. All functions are pure but for `step`, which updates `slots` in place."""

    name: str
    options: Mapping[str, Option]
    slots: tuple[str, ...]
    initial: Callable[[Options], Mapping[str, float]]
    """What each slot holds before the first round: one number for all its elements."""
    configure: Callable[[Options, Arguments, int], dict[str, Scalar]]
    """(options, the job's arguments, round) -> the arguments that sites get."""
    step: Callable[[Options, Accumulator, Accumulator, Slots, int], Accumulator]
    """(options, old, mean, slots, round) -> new, on flat chunks of one dtype and length.

    The result may be `mean` itself. `slots` holds the chunk of every slot.
    """
    sites: str = "nothing"  # what the sites do beyond training
    source: str = ""


def steps(spec: TensorSpec) -> bool:
    """Return whether a tensor is stepped (floats), or takes the mean (integers, bool)."""
    return "float" in spec.dtype


def strategy(name: str, options: Options) -> tuple[Strategy, dict[str, float]]:
    """Return the strategy and all its options, defaults filled in.

    Raises ConfigError naming the nearest when the name or an option is unknown, and naming
    the range when a value is outside.
    """
    return pick("strategy", name, options, STRATEGIES)


class Optioned(Protocol):
    """What is chosen by name and has options."""

    @property
    def options(self) -> Mapping[str, Option]:
        """The options by name."""


T = TypeVar("T", bound=Optioned)


def pick(
    what: str, name: str, options: Options, known: Mapping[str, T]
) -> tuple[T, dict[str, float]]:
    """Return the `name`d one of `known` and all its options; see `strategy` for the errors."""
    if name not in known:
        raise ConfigError(_unknown(what, name, known))
    chosen = known[name]
    for key, value in options.items():
        if key not in chosen.options:
            raise ConfigError(_unknown(f"option of {name}", key, chosen.options))
        option = chosen.options[key]
        if isinstance(value, bool) or not option.admits(value):
            raise ConfigError(
                f"option {key} of {name} is {value}, needs a number in {option.range()}"
            )
    defaults = {key: option.default for key, option in chosen.options.items()}
    return chosen, {**defaults, **{key: float(value) for key, value in options.items()}}


def _unknown(what: str, found: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(found.lower(), known, n=1, cutoff=0.0)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {found!r}{hint} (known: {', '.join(known) or 'none'})"


def describe() -> str:
    """Return docs/reference/strategies.md: the rules as this module's docstring has them."""
    _, _, rules = (__doc__ or "").partition("\n\n")
    return f"{_HEAD}\n{rules.strip()}\n\n## Options and state\n\n{table()}"


def table() -> str:
    """Return a markdown table of the strategies: needs, state, options, secure aggregation."""
    head = (
        "| strategy | the hub needs | works under secure aggregation | sites do besides "
        "| server state | options (default) | source |",
        "|---|---|---|---|---|---|---|",
    )
    rows = (
        f"| {s.name} | the mean | yes | {s.sites} | {', '.join(s.slots) or 'none'} "
        f"| {shown(s.options)} | {s.source} |"
        for s in STRATEGIES.values()
    )
    return "\n".join((*head, *rows, ""))


def shown(options: Mapping[str, Option]) -> str:
    """Return options with their ranges and defaults in one line."""
    each = (f"{k} in {o.range()} ({o.default:g})" for k, o in options.items())
    return "; ".join(each) or "none"


_HEAD = """\
# Strategies

Made by `consilia.algo.strategy.describe()`; a test compares. An experiment names one:
`strategy: {name: fedadam, options: {server_lr: 0.02}}`. Options are the server's; they are
checked before the job starts. A column says which strategies work under secure aggregation, as
they need nothing but the mean. What can be taken instead of the mean where a site may be bad:
[robust.md](robust.md).
"""


# ---- the rules -------------------------------------------------------------------------------


def _no_slots(_: Options) -> Mapping[str, float]:
    return {}


def _as_given(_: Options, arguments: Arguments, __: int) -> dict[str, Scalar]:
    return dict(arguments)


def _proximal(options: Options, arguments: Arguments, _: int) -> dict[str, Scalar]:
    """Tell sites mu; an argument of that name, set by a person, holds instead."""
    return {"proximal_mu": options["mu"], **arguments}


def _mean(_: Options, __: Accumulator, mean: Accumulator, ___: Slots, ____: int) -> Accumulator:
    return mean


def _momentum(
    options: Options, old: Accumulator, mean: Accumulator, slots: Slots, _: int
) -> Accumulator:
    m = slots["m"]
    m *= options["momentum"]
    m += mean - old
    return old + options["server_lr"] * m


SecondMoment = Callable[[Accumulator, Accumulator, float], None]  # (v, d squared, beta2)


def _adaptive(
    second: SecondMoment,
    options: Options,
    old: Accumulator,
    mean: Accumulator,
    slots: Slots,
    _: int,
) -> Accumulator:
    m, v, beta1 = slots["m"], slots["v"], options["beta1"]
    d = mean - old
    m *= beta1
    m += (1.0 - beta1) * d
    second(v, d * d, options.get("beta2", 0.0))
    return old + options["server_lr"] * m / (np.sqrt(v) + options["tau"])


def _adagrad(v: Accumulator, d2: Accumulator, _: float) -> None:
    v += d2


def _yogi(v: Accumulator, d2: Accumulator, beta2: float) -> None:
    v -= (1.0 - beta2) * d2 * np.sign(v - d2)


def _adam(v: Accumulator, d2: Accumulator, beta2: float) -> None:
    v *= beta2
    v += (1.0 - beta2) * d2


def _start(options: Options) -> Mapping[str, float]:
    return {"m": 0.0, "v": options["tau"] ** 2}


_LR = Option(1.0, 0.0, 100.0, low_open=True)
_BETA = Option(0.9, 0.0, 1.0, high_open=True)
_TAU = Option(1e-3, 0.0, 1.0, low_open=True)
_REDDI = "Reddi et al. 2021, algorithm 2"


def _adaptive_strategy(
    name: str, second: SecondMoment, options: Mapping[str, Option]
) -> Strategy:
    step = partial(_adaptive, second)
    return Strategy(name, options, ("m", "v"), _start, _as_given, step, source=_REDDI)


_ALL = (
    Strategy(
        "fedavg", {}, (), _no_slots, _as_given, _mean, source="McMahan et al. 2017, algorithm 1"
    ),
    Strategy(
        "fedprox",
        {"mu": Option(0.01, 0.0, 1000.0)},
        (),
        _no_slots,
        _proximal,
        _mean,
        sites="add mu / 2 (w - x)^2 to the loss, from the argument proximal_mu",
        source="Li et al. 2020, algorithm 2",
    ),
    Strategy(
        "fedavgm",
        {"server_lr": _LR, "momentum": _BETA},
        ("m",),
        lambda _: {"m": 0.0},
        _as_given,
        _momentum,
        source="Hsu et al. 2019",
    ),
    _adaptive_strategy(
        "fedadagrad",
        _adagrad,
        {
            "server_lr": Option(0.1, 0.0, 100.0, low_open=True),
            "beta1": Option(0.0, 0.0, 1.0, high_open=True),
            "tau": _TAU,
        },
    ),
    _adaptive_strategy(
        "fedyogi",
        _yogi,
        {
            "server_lr": Option(0.01, 0.0, 100.0, low_open=True),
            "beta1": _BETA,
            "beta2": Option(0.99, 0.0, 1.0, high_open=True),
            "tau": _TAU,
        },
    ),
    _adaptive_strategy(
        "fedadam",
        _adam,
        {
            "server_lr": Option(0.01, 0.0, 100.0, low_open=True),
            "beta1": _BETA,
            "beta2": Option(0.99, 0.0, 1.0, high_open=True),
            "tau": _TAU,
        },
    ),
)
STRATEGIES: Mapping[str, Strategy] = {s.name: s for s in _ALL}
