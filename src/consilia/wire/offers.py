"""What of an offered dataset concerns one study."""

from msgspec.structs import replace

from consilia.wire.v1 import MockTwin, OfferedDataset


def for_study(dataset: OfferedDataset, study: str) -> OfferedDataset:
    """Return an offer without what loading plans of other studies make of the dataset."""
    if not dataset.loaded:
        return dataset
    twins = {found.study: found for found in dataset.loaded}
    kept = twins.get(study) or twins.get("")
    return replace(dataset, loaded=(kept,) if kept else ())


def as_loaded(dataset: OfferedDataset, study: str) -> MockTwin | None:
    """Return the twin of the table as it is loaded for a study, None where none is told."""
    kept = for_study(dataset, study).loaded
    return kept[0].twin if kept else None
