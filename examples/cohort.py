"""The breast cancer cohort that ships inside scikit-learn, divided among four hospitals.

569 patients of the University of Wisconsin (Wolberg, Street and Mangasarian 1995), 212 with a
malignant tumour. A third is held out to judge the models; the rest goes to four hospitals of
different size and case mix, from a cancer centre that sees mostly malignant tumours to a small
screening clinic that sees few. Everything follows from `SEED`.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer

SEED = 1995
HELD_OUT_MALIGNANT, HELD_OUT_BENIGN = 70, 119  # patients nobody trains on
TARGET = "malignant"


@dataclass(frozen=True)
class Hospital:
    """A hospital and its part of the cohort."""

    site: str
    benign: int
    malignant: int


HOSPITALS = (
    Hospital("cancer-centre", 60, 78),
    Hospital("university", 76, 40),
    Hospital("county", 64, 16),
    Hospital("screening", 38, 8),
)


@dataclass(frozen=True)
class Patients:
    """Measured properties (float32, one row a patient) and whether the tumour is malignant."""

    names: list[str]
    x: np.ndarray
    y: np.ndarray

    def rows(self, index):
        """Return the patients of these row numbers."""
        return Patients(self.names, self.x[index], self.y[index])


def load():
    """Return the whole cohort."""
    data = load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in data.feature_names]
    return Patients(names, data.data.astype(np.float32), (data.target == 0).astype(np.float32))


def divide(everybody, seed=SEED):
    """Return ({site: patients}, held-out patients); no patient is in two places."""
    order = np.random.default_rng(seed).permutation(len(everybody.y))
    malignant = [int(i) for i in order if everybody.y[i] == 1]
    benign = [int(i) for i in order if everybody.y[i] == 0]
    held_out = _take(malignant, HELD_OUT_MALIGNANT) + _take(benign, HELD_OUT_BENIGN)
    parts = {}
    for hospital in HOSPITALS:
        mine = _take(malignant, hospital.malignant) + _take(benign, hospital.benign)
        parts[hospital.site] = everybody.rows(sorted(mine))
    return parts, everybody.rows(sorted(held_out))


def _take(row_numbers, count):
    taken, row_numbers[:] = row_numbers[:count], row_numbers[count:]
    return taken


def write_csv(path, patients):
    """Write patients as a hospital would export them: a header and one line a patient."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*patients.names, TARGET])
        for x, y in zip(patients.x, patients.y, strict=True):
            writer.writerow([*(f"{value:.9g}" for value in x), int(y)])


def join(parts):
    """Return the patients of several hospitals together, as no federation ever has them."""
    parts = list(parts)
    return Patients(
        parts[0].names,
        np.concatenate([part.x for part in parts]),
        np.concatenate([part.y for part in parts]),
    )
