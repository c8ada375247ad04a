"""Become a command that ends with the one who started it: ``leash.py PARENT COMMAND...``.

A killed sweep must leave no training behind that a second sweep would compete with. Linux
sends the signal; elsewhere such a run goes on to its end, and its lock keeps others away.
A program of its own, because between fork and exec a process with threads may do nothing.
"""
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == '__main__':
    parent, *command = sys.argv[1:]
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a sweep in the background may ignore it
    if os.getppid() == int(parent):
        os.execv(command[0], command)
