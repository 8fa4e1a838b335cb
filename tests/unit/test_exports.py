"""What `import consilia` offers, by hand: a name added or lost is a change users see."""

import consilia


def test_exported_names_are_these_and_load() -> None:
    assert set(consilia.__all__) == {
        "AsyncClient",
        "Client",
        "Experiment",
        "Model",
        "Study",
        "__version__",
    }
    for name in consilia.__all__:
        assert getattr(consilia, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(consilia, "Experimnt")
