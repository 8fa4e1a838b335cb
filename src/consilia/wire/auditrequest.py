"""A request for a privacy report: one file that a researcher sends to the sites of a study.

A zip of two files: `request.json`, which model of which job by which plan and experiment, and
`model.frame`, its tensors. It asks and proves nothing: each site decides, with its own approved
plan, dataset and ledger, and nothing goes back but what its people choose to tell. Whoever
reads it checks that the frame is the one that the request names.
"""

import os
import re
import shutil
import zipfile
from pathlib import Path

import msgspec

from consilia.errors import ConfigError, StorageError
from consilia.wire.people import Experiment
from consilia.wire.strict import convert

FORMAT = "consilia privacy audit 1"
_REQUEST, _FRAME = "request.json", "model.frame"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._-]{0,99}")
_MOST = 1 << 20  # bytes of request.json


class AuditRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which model a report is asked for."""

    format: str
    hub: str  # its address, as the asker knows it
    asker: str
    job: str
    model: str  # version id, <job>.<round>
    digest: str  # of the model's frame
    round: int  # how many rounds have made it
    experiment: Experiment  # plan, arguments and privacy of the training


def write(path: Path, request: AuditRequest, frame: Path) -> None:
    """Write the file; it never replaces another. StorageError when it cannot be written."""
    body = msgspec.json.format(msgspec.json.encode(request), indent=2)
    try:
        with zipfile.ZipFile(path, "x") as archive:  # weights do not get smaller: stored
            archive.writestr(_REQUEST, body)
            archive.write(frame, _FRAME)
    except FileExistsError:
        raise ConfigError(f"{path} is there already; needed a new name") from None
    except OSError as e:
        raise StorageError(f"{path}: {e.strerror}") from None


def read(path: Path, target: Path) -> AuditRequest:
    """Return the request and write its frame to `target`; ConfigError for any other file.

    The frame is copied as it is: the caller checks it, and its digest.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sorted(names) != sorted((_REQUEST, _FRAME)):
                raise ConfigError(
                    _no_request(path, f"it holds {', '.join(names) or 'nothing'}")
                )
            if any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
                raise ConfigError(_no_request(path, "it is compressed"))  # could fill the disk
            if (found := archive.getinfo(_REQUEST).file_size) > _MOST:
                raise ConfigError(_no_request(path, f"{_REQUEST} has {found} bytes"))
            said = msgspec.json.decode(archive.read(_REQUEST))
            request = convert(said, AuditRequest, f"{path}, {_REQUEST}")
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with archive.open(_FRAME) as source, os.fdopen(fd, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, msgspec.DecodeError, EOFError, RuntimeError) as e:
        raise ConfigError(_no_request(path, str(e))) from None
    except OSError as e:
        raise StorageError(f"{path}: {e.strerror}") from None
    if request.format != FORMAT:
        raise ConfigError(_no_request(path, f"its format is {request.format!r}"))
    for name in (request.asker, request.job, request.model):
        if not _NAME.fullmatch(name):  # they stand on terminals and in the site's audit
            raise ConfigError(_no_request(path, f"{name[:100]!r} is no name"))
    return request


def _no_request(path: Path, why: str) -> str:
    return (
        f"{path} is no request for a privacy report: {why}; needed a file made by "
        "consilia privacy request"
    )
