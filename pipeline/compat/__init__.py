"""Private and undocumented names of torch and timm, each behind one function or constant.

If such a name exists, it is used. If it is missing, a public way gives the same answer, or an optimization is left out.
Only this package may use such names: `tests/compat` searches the rest of the code for them, and tests this package
without each of them.
"""
