"""Private and undocumented names of torch and timm, each behind one function or constant.

A name that is there is used; where it is missing, the public way gives the same answer, or an optimization is left out.
Only this package may use such names: `tests/compat` searches for them elsewhere, and takes each away here.
"""
