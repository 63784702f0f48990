"""Engines for the bytes of remote storages: a protocol, and one for each library behind it.

`protocol` says what an engine does; the `RemoteStorage` above speaks to nothing else.
"""
