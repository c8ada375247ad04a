"""Many runs, each in a process of its own, none of them twice.

A sweep is a folder with one work dir per cell (backbone, protocol, seed). All that is known
of a cell is its record and its lock: a completed one with the wanted settings is not run
again, one that was broken off goes on from its newest checkpoint, one that another sweep
runs is waited for.
"""
