"""A whole federation in one process: try a plan before anybody is asked to approve it.

    result = simulate("heart.py", {"north": "north.csv", "south": "south.csv"}, rounds=10)
    result.history
    result.get_model().state_dict()

    with Federation({"north": "north.csv", "south": "south.csv"}) as federation:
        experiment = federation.experiment("heart.py", rounds=10).start()
        experiment.change(lr=0.01)      # and pause, stop, resume, roll_back, branch, evaluate
        experiment.wait()

`simulate` runs one job to its end in the caller's own thread, where a debugger works;
`Federation` is steered while it runs, by the SDK's own client and experiment.

The hub's engine and federation and each node's agent, policy and release are the real ones,
over an in-memory store and link; only TLS, processes and the sandbox are left out. With
`deterministic=True` the models are those of a deployed run bit by bit, on the same kind of
machine, with the same number of threads and the same sites present in every round.

The plan runs with all rights of the caller, who must own it. Tasks run one after the other:
what is simulated is the result, not the time it takes.
"""

from consilia.sim.federation import Federation
from consilia.sim.once import Simulation, simulate

__all__ = ("Federation", "Simulation", "simulate")
