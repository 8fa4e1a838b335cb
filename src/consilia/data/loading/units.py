"""Units of measurement in UCUM notation: which ones can be converted, and by what.

A unit is a product of atoms with prefixes and whole exponents: `mg/dL`, `mmol/L`, `mm[Hg]`,
`10*9/L`, `kg/m2`, `Cel`. Annotations in braces mean nothing (`{cells}/uL`). `conversion`
gives the straight line from one unit to another of the same dimension. Amounts of substance
and masses are different dimensions, until the substance is named: then its molar mass joins
them (`glucose`: 1 mmol/L is 18.016 mg/dL). International units ([iU]) have no fixed mass, and
are a dimension of their own.

The subset is that of clinical tables. Source: The Unified Code for Units of Measure, 2.1, case
sensitive; molar masses from the standard atomic weights of IUPAC, 2021.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from consilia.errors import ConfigError
from consilia.wire.strict import nearest

MAX_UNIT = 64  # characters

_BASES = ("m", "g", "s", "K", "mol", "rad", "[iU]", "eq", "osm", "A", "cd")
Dimension = tuple[int, ...]  # exponents of _BASES


def _of(**powers: int) -> Dimension:
    names = {"m": 0, "g": 1, "s": 2, "K": 3, "mol": 4, "iu": 6, "eq": 7, "osm": 8, "A": 9}
    found = [0] * len(_BASES)
    for name, power in powers.items():
        found[names[name]] = power
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit as scale and offset to the base units: base = scale * value + offset."""

    scale: float
    dimension: Dimension
    offset: float = 0.0
    prefixed: bool = False  # takes a metric prefix


_NONE: Dimension = (0,) * len(_BASES)
_PREFIXES: Mapping[str, float] = MappingProxyType(
    {
        "T": 1e12,
        "G": 1e9,
        "M": 1e6,
        "k": 1e3,
        "h": 1e2,
        "da": 1e1,
        "d": 1e-1,
        "c": 1e-2,
        "m": 1e-3,
        "u": 1e-6,
        "n": 1e-9,
        "p": 1e-12,
        "f": 1e-15,
    }
)
_PA = _of(g=1, m=-1, s=-2)
ATOMS: Mapping[str, Unit] = MappingProxyType(
    {
        "m": Unit(1.0, _of(m=1), prefixed=True),
        "g": Unit(1.0, _of(g=1), prefixed=True),
        "s": Unit(1.0, _of(s=1), prefixed=True),
        "K": Unit(1.0, _of(K=1), prefixed=True),
        "mol": Unit(1.0, _of(mol=1), prefixed=True),
        "A": Unit(1.0, _of(A=1), prefixed=True),
        "eq": Unit(1.0, _of(eq=1), prefixed=True),
        "osm": Unit(1.0, _of(osm=1), prefixed=True),
        "[iU]": Unit(1.0, _of(iu=1), prefixed=True),
        "[IU]": Unit(1.0, _of(iu=1), prefixed=True),
        "L": Unit(1e-3, _of(m=3), prefixed=True),
        "l": Unit(1e-3, _of(m=3), prefixed=True),
        "Pa": Unit(1e3, _PA, prefixed=True),
        "bar": Unit(1e8, _PA, prefixed=True),
        "m[Hg]": Unit(133.322e6, _PA, prefixed=True),
        "m[H2O]": Unit(9.80665e6, _PA, prefixed=True),
        "atm": Unit(101325e3, _PA),
        "J": Unit(1e3, _of(g=1, m=2, s=-2), prefixed=True),
        "W": Unit(1e3, _of(g=1, m=2, s=-3), prefixed=True),
        "N": Unit(1e3, _of(g=1, m=1, s=-2), prefixed=True),
        "V": Unit(1e3, _of(g=1, m=2, s=-3, A=-1), prefixed=True),
        "cal": Unit(4184.0, _of(g=1, m=2, s=-2), prefixed=True),
        "Hz": Unit(1.0, _of(s=-1), prefixed=True),
        "kat": Unit(1.0, _of(mol=1, s=-1), prefixed=True),
        "U": Unit(1e-6 / 60, _of(mol=1, s=-1), prefixed=True),
        "min": Unit(60.0, _of(s=1)),
        "h": Unit(3600.0, _of(s=1)),
        "d": Unit(86400.0, _of(s=1)),
        "wk": Unit(604800.0, _of(s=1)),
        "mo": Unit(2629800.0, _of(s=1)),
        "a": Unit(31557600.0, _of(s=1)),
        "Cel": Unit(1.0, _of(K=1), 273.15),
        "[degF]": Unit(5 / 9, _of(K=1), 459.67 * 5 / 9),
        "[in_i]": Unit(0.0254, _of(m=1)),
        "[ft_i]": Unit(0.3048, _of(m=1)),
        "[lb_av]": Unit(453.59237, _of(g=1)),
        "[oz_av]": Unit(28.349523125, _of(g=1)),
        "[stone_av]": Unit(6350.29318, _of(g=1)),
        "%": Unit(1e-2, _NONE),
        "[ppth]": Unit(1e-3, _NONE),
        "[ppm]": Unit(1e-6, _NONE),
        "10*": Unit(10.0, _NONE),
        "10^": Unit(10.0, _NONE),
        "1": Unit(1.0, _NONE),
    }
)
MOLAR_MASS: Mapping[str, float] = MappingProxyType(  # g/mol
    {
        "albumin": 66_500.0,
        "bilirubin": 584.67,
        "calcium": 40.078,
        "cholesterol": 386.66,
        "creatinine": 113.12,
        "glucose": 180.156,
        "haemoglobin": 16_114.5,  # one chain with its haem, as laboratories report mmol/L
        "iron": 55.845,
        "lactate": 90.078,
        "magnesium": 24.305,
        "phosphate": 30.974,  # as phosphorus
        "potassium": 39.098,
        "sodium": 22.990,
        "triglycerides": 885.4,
        "urea": 60.056,
        "urea-nitrogen": 28.014,
        "uric-acid": 168.112,
    }
)
_ATOM = re.compile(r"(10[*^]|\d+|(?:\[[^\]]*\]|[A-Za-z%])+)([+-]?\d+)?\Z")


@dataclass(frozen=True, slots=True)
class Line:
    """y = scale * x + offset, from a value in one unit to the same in another."""

    scale: float
    offset: float = 0.0


def unit(text: str) -> Unit:
    """Return what a unit is worth in base units; raise ConfigError naming what is unknown."""
    if not text.strip() or len(text) > MAX_UNIT:
        raise ConfigError(f"unit {text[:80]!r}; needed 1 to {MAX_UNIT} characters of UCUM")
    alone = re.sub(r"(^|[./])\{[^{}]*\}(?=[./]|$)", r"\g<1>1", text.strip())
    parts = re.split(r"([./])", re.sub(r"\{[^{}]*\}", "", alone))
    if parts[0] == "":
        parts = ["1", *parts[1:]]  # "/min"
    total = Unit(1.0, _NONE)
    for index in range(0, len(parts), 2):
        power = -1 if index and parts[index - 1] == "/" else 1
        piece = _piece(parts[index], text)
        if piece.offset and len(parts) > 1:
            raise ConfigError(
                f"unit {text!r}: {parts[index]} has a zero of its own; it stands alone"
            )
        total = Unit(
            total.scale * piece.scale**power,
            tuple(a + power * b for a, b in zip(total.dimension, piece.dimension, strict=True)),
            piece.offset,
        )
    return total


def known(text: str) -> bool:
    """Tell whether `unit` knows it; UCUM has more units than can be converted here."""
    try:
        unit(text)
    except ConfigError:
        return False
    return True


def conversion(source: str, target: str, substance: str = "") -> Line:
    """Return the line from `source` to `target`; `substance` joins masses and amounts.

    Raises ConfigError for an unknown unit or substance, or units of different dimensions.
    """
    a, b = unit(source), unit(target)
    scale = a.scale / b.scale
    if a.dimension != b.dimension:
        scale *= _joined(a.dimension, b.dimension, source, target, substance)
    elif substance:
        _molar(substance)
    offset = (a.offset - b.offset) / b.scale
    if not (math.isfinite(scale) and scale > 0):
        raise ConfigError(f"from {source!r} to {target!r} the factor is no finite number")
    return Line(scale, offset)


def _joined(a: Dimension, b: Dimension, source: str, target: str, substance: str) -> float:
    """Return the factor by which a mass becomes an amount, or the other way."""
    moles, grams = _BASES.index("mol"), _BASES.index("g")
    power = a[moles] - b[moles]  # of moles that turn into grams
    gone = [x - y for x, y in zip(a, b, strict=True)]
    gone[moles], gone[grams] = 0, gone[grams] + power
    if any(gone) or power not in (-1, 1):
        raise ConfigError(f"{source!r} cannot become {target!r}: they measure different things")
    if not substance:
        raise ConfigError(
            f"{source!r} becomes {target!r} only when the substance is known; give "
            f"`substance`, one of {', '.join(MOLAR_MASS)}, or `molar:G` with its grams per mole"
        )
    return float(_molar(substance) ** power)


def _molar(substance: str) -> float:
    if substance.startswith("molar:"):
        try:
            found = float(substance.removeprefix("molar:"))
        except ValueError:
            found = math.nan
        if not 1 <= found <= 1e7:
            raise ConfigError(f"substance {substance!r}; needed 1 to 1e7 grams per mole")
        return found
    if substance not in MOLAR_MASS:
        raise ConfigError(f"substance {substance!r} is unknown{nearest(substance, MOLAR_MASS)}")
    return MOLAR_MASS[substance]


def _piece(piece: str, text: str) -> Unit:
    found = _ATOM.match(piece)
    if found is None:
        raise ConfigError(f"unit {text!r}: {piece!r} is no UCUM unit{nearest(piece, ATOMS)}")
    name, power = found[1], int(found[2] or 1)
    if not -30 <= power <= 30:
        raise ConfigError(f"unit {text!r}: the exponent {power} is out of -30 to 30")
    one = _atom(name, text)
    if power != 1 and one.offset:
        raise ConfigError(f"unit {text!r}: {name} has a zero of its own; it takes no exponent")
    return Unit(one.scale**power, tuple(d * power for d in one.dimension), one.offset)


def _atom(name: str, text: str) -> Unit:
    if name in ATOMS:
        return ATOMS[name]
    for prefix, factor in _PREFIXES.items():
        rest = ATOMS.get(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if rest is not None and rest.prefixed:
            return Unit(rest.scale * factor, rest.dimension)
    if name.isdecimal() and int(name) > 0:
        return Unit(float(name), _NONE)
    raise ConfigError(f"unit {text!r}: {name!r} is unknown here{nearest(name, ATOMS)}")
