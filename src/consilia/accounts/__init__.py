"""People's accounts for a web application: passwords, second factor, lockout, sessions.

Nothing here knows which application it serves or which roles that has; whoever uses it brings
the database transaction, so that a change and its audit line are one.
"""
