"""The migrations, oldest first: r0001, r0002, ... Released ones are never edited."""
