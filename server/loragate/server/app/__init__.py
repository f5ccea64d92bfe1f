"""The server as a process: the one place where objects are made and tied together.

`build` has the order in which that is done; a module each, what is made in one step. `serving` is
the process's life around it, and imports nothing that takes long.
"""
