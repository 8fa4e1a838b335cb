"""Tables for tests: y = a - 2 b + 3 c with a little noise, different at each site."""

from pathlib import Path

import numpy as np

TRUTH = (1.0, -2.0, 3.0)
PLAN = Path(__file__).with_name("linear.py")


def write(folder: Path, sizes: dict[str, int]) -> dict[str, Path]:
    """Write a CSV file a site; return where they are."""
    paths = {}
    for number, (site, size) in enumerate(sizes.items()):
        rng = np.random.default_rng(number)
        x = rng.normal(loc=number / 2, size=(size, 3))
        y = x @ np.array(TRUTH) + rng.normal(scale=0.1, size=size)
        paths[site] = folder / f"{site}.csv"
        lines = [
            "a,b,c,y",
            *(",".join(f"{v:.6f}" for v in (*row, t)) for row, t in zip(x, y, strict=True)),
        ]
        paths[site].write_text("\n".join(lines) + "\n")
    return paths
