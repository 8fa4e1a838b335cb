"""Request bodies: JSON into the declared record, strictly.

Litestar would drop unknown fields and read "5" as 5; a person who misspells a field must
learn it. So the decoding is wire.strict's, plugged in as the application's one DTO.
"""

from collections.abc import Generator
from typing import Any

import msgspec
from litestar import Request
from litestar.dto import AbstractDTO, DTOFieldDefinition
from litestar.typing import FieldDefinition

from consilia.errors import ConfigError
from consilia.wire import strict


class StrictBody(AbstractDTO[Any]):
    """Decodes a route's `data` parameter."""

    def decode_bytes(self, value: bytes) -> Any:
        """Return the record that the route declares; raise ConfigError saying what is wrong."""
        field = self.asgi_connection.route_handler.parsed_data_field
        try:
            plain = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError) as e:
            raise ConfigError(f"request body: not valid JSON: {e}") from None
        return strict.convert(plain, field.annotation, "request body")

    def decode_builtins(self, value: dict[str, Any]) -> Any:
        """Refuse form data: bodies are JSON."""
        raise ConfigError(
            "request body: send JSON (Content-Type: application/json), not a form"
        )

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Prepare nothing: the record is its own transfer type."""

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """Yield nothing: no transfer type is made."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Nothing is nested: no transfer type is made."""
        return False


class JsonRequest(Request[Any, Any, Any]):
    """A request whose missing body reads as JSON null, so that it is refused with a reason."""

    async def body(self) -> bytes:
        """Return the body, or b"null" when there is none."""
        return await super().body() or b"null"
