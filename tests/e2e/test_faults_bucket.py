"""A hub whose frames are in a bucket: it loses its folder, and the bucket goes away."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from faultkit import Lab, configure

from s3kit import KEY, new_bucket, s3_client, s3_server

SITES = ("a", "b")


class OnBucket(Lab):
    """A lab whose hub keeps its frames at `address`."""

    address = ""
    bucket = ""

    def make_hub(self) -> None:
        """Make the hub; its credentials lie beside its other secrets."""
        super().make_hub()
        secret = self.hub_directory / "secrets/s3.key"
        secret.write_text("\n".join(KEY))
        secret.chmod(0o600)
        s3 = {"bucket": self.bucket, "endpoint": self.address, "prefix": "trial"}
        s3 |= {"credentials_file": "secrets/s3.key"}
        configure(self.hub_directory / "hub.yaml", s3=s3)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnBucket]:
    root = tmp_path_factory.mktemp("bucket")
    with s3_server(root) as address, OnBucket(root) as lab:
        lab.address, lab.bucket = address, new_bucket(address)
        lab.open(SITES)
        yield lab


@pytest.mark.slow
def test_a_hub_that_lost_its_folder_goes_on(lab: OnBucket, tmp_path: Path) -> None:
    with lab.client() as client:
        job = lab.start(client, 2, arguments={"parameters": 100_000})
        view = lab.finish(client, job)
        lab.check(client, view)
    stored = s3_client(lab.address).list_objects_v2(Bucket=lab.bucket, Prefix="trial/blobs/")
    assert len(stored["Contents"]) >= 3, "the first model and one of each round"
    lab.kill("hub")
    for folder in ("blobs", "spool"):
        shutil.rmtree(lab.hub_directory / folder)
    lab.start_hub()
    lab.ready(*SITES)
    with lab.client() as client:
        client.download_model(view.rounds[1].model, tmp_path / "frame")
        client.resume(job, 3)
        view = lab.finish(client, job)
        assert [r.sites for r in view.rounds[1:]] == [SITES] * 3
        lab.check(client, view)
    lab.intact(*SITES)
