"""Train it at two hospitals."""

from consilia import Client, Experiment, Study

study = Study("first", "A first model", ("county", "university"), ("breast-cancer",))
experiment = Experiment(Client(), study=study, plan="tumour.py", rounds=10)
experiment.start(progress=True)
print(experiment.history)
experiment.get_model().save("tumour.npz")
