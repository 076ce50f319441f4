"""Damaged inputs by the thousand: each is used, or refused in one line.

A case is a number: `cases.make` draws from `random.Random` of seed and number what is damaged and
which command meets it; `process.run` runs the command in a fork of a process that has everything
imported; `judge.fault` says what is wrong with how it ended. `worker` is the process, and the
command that repeats a case by its number.
"""
