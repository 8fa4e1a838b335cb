"""The people of a hub: accounts, roles, sessions, invitations, and who may do what."""
