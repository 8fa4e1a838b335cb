"""What the web listeners of hub and node have in common: bodies, errors, OpenAPI, server."""
