"""Every error Consilia raises on purpose.

    ConsiliaError
    ├── ConfigError       a file, option or argument a person wrote is wrong          exit 2
    ├── Refused           a person's or a site's decision forbids it                  exit 3
    ├── AuthError         who asks is unknown, expired or revoked                     exit 4
    ├── SecondFactorNeeded  the password is right, a code is due                    exit 4
    ├── TooMany           too many attempts or requests; `after` says when again      exit 3
    ├── NotFound          what is asked for does not exist                            exit 5
    ├── Conflict          it exists already, or is in a state that forbids the step   exit 6
    ├── WireError         bytes from another party break the wire's law               exit 7
    ├── UpdateRejected    an update cannot be folded; says which and why              exit 8
    ├── EmptyRound        a round would close with nothing to average                 exit 8
    ├── PlanError         a training plan does not load or breaks its contract        exit 9
    ├── DataError         a dataset cannot be read as declared                        exit 10
    ├── WorkerError       a worker died, timed out or outgrew its limits              exit 11
    ├── TransferError     a blob could not be moved                                   exit 12
    └── StorageError      a disk or database refused                                  exit 13

A message says who, what was found, what was needed, and what to do. The tree has depth
two: catch ConsiliaError, or a leaf. Anything else that surfaces is a defect (exit 70).
Where one field is to blame, the message may be a `Wrong`: the same words, and the three
parts for a program.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wrong:
    """A message that is about one field: what it holds and what it needs.

    `field` is a path of keys, as `early_stop.metric`. `words` stands for the usual sentence
    where more is to be said. Raise it as any message: ConfigError(Wrong(...)).
    """

    field: str
    found: str
    expected: str
    words: str = ""

    def __str__(self) -> str:
        """Return the sentence that a person reads."""
        return self.words or f"{self.field}: found {self.found}, needed {self.expected}"


def wrong_in(error: Exception) -> Wrong | None:
    """Return what an error says of one field, None where it is about something else."""
    return next((part for part in error.args if isinstance(part, Wrong)), None)


class ConsiliaError(Exception):
    """Base of all deliberate errors; `exit_code` is what the command line returns."""

    exit_code = 1


class ConfigError(ConsiliaError):
    """A configuration file, command option or argument is wrong."""

    exit_code = 2


class Refused(ConsiliaError):
    """A site policy, approval or role forbids the request."""

    exit_code = 3


class AuthError(ConsiliaError):
    """The caller's certificate, key or token is missing, expired, foreign or revoked."""

    exit_code = 4


class SecondFactorNeeded(ConsiliaError):
    """Name and password are right; a code of the account's second factor is due."""

    exit_code = 4


class TooMany(ConsiliaError):
    """Too many attempts or requests; `after` is in how many seconds one may ask again."""

    exit_code = 3

    def __init__(self, message: str, after: float = 1.0) -> None:
        """`after` is in seconds."""
        super().__init__(message)
        self.after = after


class NotFound(ConsiliaError):
    """No such object."""

    exit_code = 5


class Conflict(ConsiliaError):
    """The object exists already, or its state does not admit the step."""

    exit_code = 6


class WireError(ConsiliaError):
    """A message or tensor frame from another party is malformed or over a limit."""

    exit_code = 7


class UpdateRejected(ConsiliaError):
    """An update does not fit the round; nothing of it was folded."""

    exit_code = 8


class EmptyRound(ConsiliaError):
    """No update was accepted, so there is nothing to average."""

    exit_code = 8


class PlanError(ConsiliaError):
    """A training plan does not load, or breaks the contract of `consilia.plans`."""

    exit_code = 9


class DataError(ConsiliaError):
    """A dataset cannot be read, or does not match what was declared."""

    exit_code = 10


class WorkerError(ConsiliaError):
    """A worker process crashed, timed out, or outgrew a limit.

    `cause` is from a closed list.
    """

    exit_code = 11

    def __init__(self, message: str, cause: str = "crashed") -> None:
        """`message` stays at the site; only `cause` may leave it (wire.v1.FailureCause)."""
        super().__init__(message)
        self.cause = cause


class TransferError(ConsiliaError):
    """A blob could not be moved, after resuming was tried."""

    exit_code = 12


class StorageError(ConsiliaError):
    """A disk or database refused: full, read-only, corrupt or unreachable."""

    exit_code = 13
