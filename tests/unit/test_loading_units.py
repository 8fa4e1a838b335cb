"""Conversion of units: known factors, and refusals in words."""

import pytest

from consilia.data.loading.units import ATOMS, MOLAR_MASS, conversion, unit
from consilia.errors import ConfigError


@pytest.mark.parametrize(
    ("source", "target", "substance", "value", "result"),
    [
        ("mg/dL", "mmol/L", "glucose", 90.0, 4.9957),
        ("mmol/L", "mg/dL", "cholesterol", 5.0, 193.33),
        ("mg/dL", "umol/L", "creatinine", 1.0, 88.40),
        ("mg/dl", "umol/l", "bilirubin", 1.0, 17.104),
        ("g/dL", "g/L", "", 13.5, 135.0),
        ("g/dL", "mmol/L", "haemoglobin", 16.1145, 10.0),
        ("mg/dL", "mmol/L", "molar:180.156", 180.156, 10.0),
        ("Cel", "[degF]", "", 37.0, 98.6),
        ("[degF]", "K", "", 32.0, 273.15),
        ("mm[Hg]", "kPa", "", 120.0, 15.9987),
        ("[lb_av]", "kg", "", 150.0, 68.0389),
        ("[in_i]", "cm", "", 70.0, 177.8),
        ("10*9/L", "10*3/uL", "", 250.0, 250.0),
        ("{cells}/uL", "/mL", "", 3.0, 3000.0),
        ("%", "1", "", 45.0, 0.45),
        ("mg", "ug", "", 1.5, 1500.0),
        ("ug/kg/min", "mg/kg/h", "", 1.0, 0.06),
        ("kg/m2", "g/cm2", "", 25.0, 2.5),
        ("mL/min/{1.73_m2}", "mL/s", "", 60.0, 1.0),
        ("a", "mo", "", 1.0, 12.0),
        ("U/L", "ukat/L", "", 60.0, 1.0),
        ("m[iU]/L", "u[iU]/mL", "", 2.5, 2.5),
    ],
)
def test_known_conversions(
    source: str, target: str, substance: str, value: float, result: float
) -> None:
    line = conversion(source, target, substance)
    assert value * line.scale + line.offset == pytest.approx(result, rel=2e-5)
    back = conversion(target, source, substance)
    assert result * back.scale + back.offset == pytest.approx(value, rel=2e-5)


@pytest.mark.parametrize(
    ("source", "target", "substance", "said"),
    [
        ("mg/dL", "mmol/L", "", "only when the substance is known"),
        ("mg/dL", "mmol/L", "glucos", "did you mean 'glucose'"),
        ("mg/dL", "mmol/L", "molar:-1", "grams per mole"),
        ("mg/dL", "mm[Hg]", "glucose", "measure different things"),
        ("[iU]/L", "mg/L", "", "measure different things"),
        ("kilo", "g", "", "'kilo' is unknown here"),
        ("mg//dL", "g/L", "", "'' is no UCUM unit"),
        ("Cel/min", "K/min", "", "zero of its own"),
        ("Cel2", "K2", "", "zero of its own"),
        ("", "g", "", "needed 1 to"),
        ("m99", "m99", "", "out of -30 to 30"),
    ],
)
def test_what_cannot_be_converted_is_said(
    source: str, target: str, substance: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        conversion(source, target, substance)


def test_every_atom_and_substance_is_sound() -> None:
    assert all(unit(name).scale > 0 for name in ATOMS)
    assert all(1 < mass < 1e6 for mass in MOLAR_MASS.values())
