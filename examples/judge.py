"""How good is a model? The same plan trained alone or pooled, judged on the same patients."""

import importlib.util
from pathlib import Path

import cohort
import torch
from sklearn.metrics import roc_auc_score

from consilia.core.select import site_seed
from consilia.data.registry import inspect_table, to_source
from consilia.data.table import Table
from consilia.plans.contract import Context, run_task

PLAN_FILE = Path(__file__).with_name("breast_cancer.py")


def load_plan_module():
    """Import the plan as the ordinary Python module that it is."""
    spec = importlib.util.spec_from_file_location("breast_cancer", PLAN_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train_without_federation(module, csv, rounds, seed):
    """Train on one table as long as the federation trains; return the weights.

    One task after another, from the same first model: a federation of one.
    """
    table = Table(to_source(inspect_table(csv, "alone", ("alone",), now=0.0)))
    weights = run_task(
        module.PLAN, None, None, {}, Context(seed=site_seed(seed, 0, ""))
    ).weights
    for number in range(1, rounds + 1):
        context = Context(round=number, seed=site_seed(seed, number, csv.stem))
        weights = run_task(module.PLAN, weights, table, {}, context).weights
    return weights


def judge(module, weights, patients):
    """Return (accuracy, area under the ROC curve) on held-out patients."""
    network = module.model(module.PLAN.arguments)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    network.eval()
    with torch.no_grad():
        logit = network(torch.from_numpy(patients.x)).squeeze(1).numpy()
    accuracy = ((logit > 0) == (patients.y == 1)).mean()
    return float(accuracy), float(roc_auc_score(patients.y, logit))


def write_cohort(folder):
    """Write a CSV a hospital, and pooled.csv of all; return the held-out patients."""
    everybody = cohort.load()
    parts, held_out = cohort.divide(everybody)
    folder.mkdir(parents=True)
    for site, patients in parts.items():
        cohort.write_csv(folder / f"{site}.csv", patients)
    cohort.write_csv(folder / "pooled.csv", cohort.join(parts.values()))
    cohort.write_csv(folder / "held-out.csv", held_out)
    return held_out
