"""Train it at two invented hospitals in this process, steered while it runs."""

import numpy as np

from consilia.sim import Federation


def hospital(seed, size):
    random = np.random.default_rng(seed)
    age, effort = random.normal(size=(2, size))
    pulse = 70 - 3 * age + 20 * effort + random.normal(size=size)
    return {"one": np.ones(size), "age": age, "effort": effort, "pulse": pulse}


tables = {"north": hospital(1, 200), "south": hospital(2, 80)}
with Federation(tables, holdout=0.2) as federation:
    experiment = federation.experiment("pulse.py", rounds=20, deterministic=True)
    experiment.start()
    for round, _ in experiment.stream_metrics():
        if round == 5:
            experiment.change(lr=0.3)
        if round == 8:
            experiment.stop()
    experiment.resume()
    experiment.wait(progress=True)

    experiment.roll_back(5)  # the model after round 5 was fine; go on from it
    experiment.resume(rounds=25)
    experiment.wait()
    print(experiment.history)

    judged = experiment.evaluate()
    judged.start()
    judged.wait()
    print(judged.evaluations[0].pooled["mae"])
    experiment.get_model().save("pulse.npz")
