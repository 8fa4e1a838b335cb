"""Strategies against oracles: the published rules in plain Python, number by number."""

from collections.abc import Callable, Mapping
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilia.algo.aggregate import Accumulator
from consilia.algo.strategy import STRATEGIES, Slots, describe, steps, strategy, table
from consilia.core.weights import DTYPES, TensorSpec
from consilia.errors import ConfigError

Numbers = list[float]
Oracle = Callable[[float, Numbers, Mapping[str, float]], Numbers]

# ---- oracles: one weight over all rounds, from the start x and each round's mean -------------


def fedavg(x: float, means: Numbers, o: Mapping[str, float]) -> Numbers:
    """McMahan et al. 2017, algorithm 1; FedProx (Li et al. 2020) is the same at the server."""
    return list(means)


def fedavgm(x: float, means: Numbers, o: Mapping[str, float]) -> Numbers:
    """Hsu et al. 2019: v <- beta v + dw, w <- w - v, with dw = w - mean."""
    path, v = [], 0.0
    for mean in means:
        v = o["momentum"] * v + (x - mean)
        x = x - o["server_lr"] * v
        path.append(x)
    return path


def reddi(second: Callable[[float, float, float], float]) -> Oracle:
    """Reddi et al. 2021, algorithm 2."""

    def oracle(x: float, means: Numbers, o: Mapping[str, float]) -> Numbers:
        path, m, v = [], 0.0, o["tau"] * o["tau"]
        for mean in means:
            delta = mean - x
            m = o["beta1"] * m + (1 - o["beta1"]) * delta
            v = second(v, delta * delta, o.get("beta2", 0.0))
            x = x + o["server_lr"] * m / (sqrt(v) + o["tau"])
            path.append(x)
        return path

    return oracle


def sign(number: float) -> int:
    return (number > 0) - (number < 0)


ORACLES: Mapping[str, Oracle] = {
    "fedavg": fedavg,
    "fedprox": fedavg,
    "fedavgm": fedavgm,
    "fedadagrad": reddi(lambda v, d2, _: v + d2),
    "fedyogi": reddi(lambda v, d2, b: v - (1 - b) * d2 * sign(v - d2)),
    "fedadam": reddi(lambda v, d2, b: b * v + (1 - b) * d2),
}
OPTIONS: Mapping[str, Mapping[str, float]] = {
    "fedavg": {},
    "fedprox": {"mu": 0.5},
    "fedavgm": {"server_lr": 0.7, "momentum": 0.8},
    "fedadagrad": {"server_lr": 0.05, "beta1": 0.3, "tau": 0.01},
    "fedyogi": {"server_lr": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
    "fedadam": {"server_lr": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
}


def run(
    name: str, options: Mapping[str, float], start: Accumulator, means: list[Accumulator]
) -> list[Accumulator]:
    """Return the model after every round."""
    chosen, full = strategy(name, options)
    initial = chosen.initial(full)
    slots: Slots = {s: np.full(start.shape, initial[s], start.dtype) for s in chosen.slots}
    path, x = [], start
    for round, mean in enumerate(means, 1):
        x = chosen.step(full, x, mean, slots, round)
        assert x.dtype == start.dtype
        assert all(slot.dtype == start.dtype for slot in slots.values())
        path.append(x)
    return path


def floats64(values: Numbers) -> Accumulator:
    return np.array(values, np.float64)


def floats32(values: Numbers) -> Accumulator:
    return np.array(values, np.float32)


paths = st.lists(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4), min_size=2)


@pytest.mark.parametrize("defaults", [True, False])
@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=25, deadline=None)
@given(data=paths)
def test_follows_the_published_rule(name: str, defaults: bool, data: list[Numbers]) -> None:
    _, options = strategy(name, {} if defaults else OPTIONS[name])
    found = run(name, options, floats64(data[0]), [floats64(row) for row in data[1:]])
    for i, x in enumerate(data[0]):
        expected = ORACLES[name](x, [row[i] for row in data[1:]], options)
        assert [float(model[i]) for model in found] == pytest.approx(expected, 1e-9, 1e-9)


@pytest.mark.parametrize("name", ORACLES)
def test_float32_stays_near_the_rule(name: str) -> None:
    random = np.random.default_rng(0)
    data = [[float(np.float32(v)) for v in random.standard_normal(50)] for _ in range(21)]
    _, options = strategy(name, OPTIONS[name])
    found = run(name, options, floats32(data[0]), [floats32(row) for row in data[1:]])
    for i, x in enumerate(data[0]):
        expected = ORACLES[name](x, [row[i] for row in data[1:]], options)
        assert [float(model[i]) for model in found] == pytest.approx(expected, 1e-4, 1e-4)


def test_first_step_of_fedadam_by_hand() -> None:
    """x = 0, mean = 1: m = 0.1, v = 0.99 * 1e-6 + 0.01, no bias correction."""
    (x,) = run("fedadam", {}, floats64([0.0]), [floats64([1.0])])
    assert x[0] == pytest.approx(0.01 * 0.1 / (sqrt(0.01000099) + 0.001), rel=1e-12)


def test_second_moment_starts_at_tau_squared() -> None:
    for name in ("fedadagrad", "fedyogi", "fedadam"):
        chosen, options = strategy(name, {"tau": 0.5})
        assert chosen.initial(options) == {"m": 0.0, "v": 0.25}


@pytest.mark.parametrize("name", ORACLES)
def test_a_mean_equal_to_the_model_moves_nothing_at_first(name: str) -> None:
    x = floats32([1.5, -2.0, 0.0])
    (new,) = run(name, {}, x.copy(), [x])
    assert np.array_equal(new, x)


@pytest.mark.parametrize("name", ORACLES)
def test_chunks_are_independent_and_bit_identical(name: str) -> None:
    random = np.random.default_rng(1)
    start, *means = (random.standard_normal(1000).astype(np.float32) for _ in range(4))
    whole = run(name, {}, start, list(means))[-1]
    for cut in (1, 3, 511):
        parts = [
            run(name, {}, start[part], [mean[part] for mean in means])[-1]
            for part in (slice(0, cut), slice(cut, None))
        ]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("name", ORACLES)
def test_resuming_from_the_slots_is_bit_identical(name: str) -> None:
    chosen, options = strategy(name, {})
    random = np.random.default_rng(2)
    x, *means = (random.standard_normal(9).astype(np.float32) for _ in range(5))
    whole = run(name, {}, x, list(means))[-1]
    initial = chosen.initial(options)
    kept = {slot: np.full(9, initial[slot], np.float32).tobytes() for slot in chosen.slots}
    model = x.tobytes()
    for round, mean in enumerate(means, 1):
        slots: Slots = {s: np.frombuffer(b, np.float32).copy() for s, b in kept.items()}
        new = chosen.step(options, np.frombuffer(model, np.float32), mean, slots, round)
        model, kept = new.tobytes(), {s: slots[s].tobytes() for s in chosen.slots}
    assert model == whole.tobytes()


@pytest.mark.parametrize("name", ORACLES)
def test_step_leaves_its_inputs_alone(name: str) -> None:
    old, mean = floats32([1.0, 2.0]), floats32([3.0, 5.0])
    old.flags.writeable = mean.flags.writeable = False
    run(name, {}, old, [mean])
    assert (old.tolist(), mean.tolist()) == ([1, 2], [3, 5])


# ---- what sites get --------------------------------------------------------------------------


def test_fedprox_tells_sites_mu_and_an_argument_set_by_hand_holds() -> None:
    chosen, options = strategy("fedprox", {"mu": 0.5})
    assert chosen.configure(options, {"lr": 0.1}, 1) == {"proximal_mu": 0.5, "lr": 0.1}
    assert chosen.configure(options, {"proximal_mu": 0.1}, 1) == {"proximal_mu": 0.1}


@pytest.mark.parametrize("name", [name for name in ORACLES if name != "fedprox"])
def test_others_pass_arguments_on_as_a_copy(name: str) -> None:
    chosen, options = strategy(name, {})
    arguments = {"lr": 0.1}
    found = chosen.configure(options, arguments, 1)
    found["lr"] = 9.0
    assert arguments == {"lr": 0.1}


# ---- options ---------------------------------------------------------------------------------


def test_every_strategy_has_an_oracle() -> None:
    assert set(ORACLES) == set(STRATEGIES)


def test_defaults_are_filled_in_and_admissible() -> None:
    for name, record in STRATEGIES.items():
        _, options = strategy(name, {})
        assert set(options) == set(record.options)
        assert strategy(name, options)[1] == options


@pytest.mark.parametrize(
    ("name", "near"), [("fedadm", "fedadam"), ("FedProx", "fedprox"), ("avg", "fedavg")]
)
def test_unknown_strategy_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown strategy '{name}'; did you mean '{near}'"):
        strategy(name, {})


def test_unknown_option_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"'beta_1'; did you mean 'beta1'.* \(known: server_lr"
    ):
        strategy("fedadam", {"beta_1": 0.9})
    with pytest.raises(ConfigError, match=r"unknown option of fedavg 'mu' \(known: none\)"):
        strategy("fedavg", {"mu": 0.1})


LIMITS = [
    ("fedprox", "mu", [0.0, 1000.0], [-1e-9, 1000.1]),
    ("fedavgm", "server_lr", [1e-9, 100.0], [0.0, 100.1]),
    ("fedavgm", "momentum", [0.0, 0.999999], [-1e-9, 1.0]),
    *(
        row
        for name in ("fedadagrad", "fedyogi", "fedadam")
        for row in (
            (name, "server_lr", [1e-9, 100.0], [0.0, 100.1]),
            (name, "beta1", [0.0, 0.999999], [-1e-9, 1.0]),
            (name, "tau", [1e-9, 1.0], [0.0, 1.0001]),
        )
    ),
    ("fedyogi", "beta2", [0.0, 0.999999], [-1e-9, 1.0]),
    ("fedadam", "beta2", [0.0, 0.999999], [-1e-9, 1.0]),
]


def test_every_option_has_its_limits_tested() -> None:
    tested = {(name, option) for name, option, *_ in LIMITS}
    assert tested == {(n, o) for n, record in STRATEGIES.items() for o in record.options}


@pytest.mark.parametrize(("name", "option", "good", "bad"), LIMITS)
def test_limits(name: str, option: str, good: Numbers, bad: Numbers) -> None:
    for value in good:
        assert strategy(name, {option: value})[1][option] == value
    for value in [*bad, float("nan"), float("inf"), -float("inf"), True]:
        with pytest.raises(
            ConfigError, match=rf"option {option} of {name} is .*needs a number"
        ):
            strategy(name, {option: value})


def test_floats_are_stepped_and_the_rest_takes_the_mean() -> None:
    stepped = {dtype for dtype in DTYPES if steps(TensorSpec("w", dtype, (1,)))}
    assert stepped == {"float64", "float32", "float16", "bfloat16"}


def test_table_has_a_row_for_every_strategy_and_whole_columns() -> None:
    head, rule, *rows = table().splitlines()
    assert [row.split("|")[1].strip() for row in rows] == list(STRATEGIES)
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    column = [cell.strip() for cell in head.split("|")].index("works under secure aggregation")
    assert {row.split("|")[column].strip() for row in rows} == {"yes"}


def test_docs_show_the_strategies_as_they_are() -> None:
    docs = Path(__file__).parents[2] / "docs" / "reference" / "strategies.md"
    assert docs.read_text() == describe()
