"""The node's console: a web application for the hospital's own staff, a process of its own."""
