"""Passwords: argon2id, and which ones are refused.

Parameters are RFC 9106's second recommended option (3 passes, 64 MiB, 4 lanes), about 0.1 s
of a core. Rules are NIST SP 800-63B's: length counts, composition does not, and what is easily
guessed for this very account is refused.
"""

from collections.abc import Iterable

import argon2

from consilia.errors import ConfigError, Wrong

LEAST = 12  # characters
MOST = 200
HASHER = argon2.PasswordHasher.from_parameters(argon2.profiles.RFC_9106_LOW_MEMORY)
# What leaked passwords are mostly built from, as the yearly lists of them show; longer ones
# are these with a year, a digit or a mark, which the rule below looks through.
_WEAK = (
    "password", "passwort", "passw0rd", "p@ssword", "consilia", "hospital", "krankenhaus",
    "klinikum", "clinic", "doctor", "qwertz", "qwerty", "qwertyuiop", "qwertzuiop", "azerty",
    "asdfgh", "asdfghjkl", "zxcvbn", "1q2w3e4r", "1qaz2wsx", "qazwsx", "abcdef", "abc123",
    "012345", "123456", "1234567890", "987654", "0987654321", "111111", "000000", "654321",
    "iloveyou", "letmein", "welcome", "willkommen", "admin", "administrator", "operator",
    "changeme", "default", "secret", "geheim", "master", "login", "access", "test123",
    "football", "fussball", "baseball", "superman", "batman", "pokemon", "dragon", "monkey",
    "shadow", "sunshine", "princess", "michael", "jennifer", "jordan", "charlie", "trustno1",
    "whatever", "starwars", "freedom", "hallo", "hello", "schatz", "computer", "internet",
    "samsung", "google", "summer", "winter", "sommer", "spring", "autumn", "herbst",
)  # fmt: skip


def check(password: str, known: Iterable[str] = ()) -> None:
    """Raise ConfigError for a password that is too short, too long or easily guessed.

    `known` are words that anybody would try first: the account's name, the site's.
    """
    if not LEAST <= len(password) <= MOST:
        needed = f"{LEAST} to {MOST}; a sentence of four unrelated words is good"
        raise ConfigError(Wrong("password", f"{len(password)} characters", needed))
    plain = password.casefold()
    for word in (*_WEAK, *(w.casefold() for w in known if len(w) > 2)):
        if len(plain.replace(word, "")) < LEAST // 2:
            raise ConfigError(
                f"password: it is little more than {word!r}, which is tried first; choose "
                "another"
            )
    if len(set(plain)) < 5:
        found = f"{len(set(plain))} different characters"
        raise ConfigError(Wrong("password", found, "5 or more"))


def hashed(password: str, hasher: argon2.PasswordHasher = HASHER) -> str:
    """Return the argon2id hash, salted anew each time, in the PHC string format."""
    return hasher.hash(password)


def matches(kept: str, password: str, hasher: argon2.PasswordHasher = HASHER) -> bool:
    """Tell whether `password` is the one of the `kept` hash. Takes as long for a wrong one."""
    if len(password) > MOST:
        return False  # never set, and not worth hashing
    try:
        return hasher.verify(kept, password)
    except (argon2.exceptions.VerifyMismatchError, argon2.exceptions.VerificationError):
        return False
    except argon2.exceptions.InvalidHashError:
        return False


def outdated(kept: str, hasher: argon2.PasswordHasher = HASHER) -> bool:
    """Tell whether a hash was made with weaker parameters than today's."""
    return hasher.check_needs_rehash(kept)
