"""What an explanation can be asked for. Imports nothing, for `--help`."""

METHODS = ("integrated", "patching", "gradient")
BASELINES = ("mean", "zero")
