"""What a store survives: kills and failing system calls at every place, flipped bits, races, jumping clocks.

`make torture` tries all of it and prints a table; `make test` tries a seeded sample.
"""
