"""Stages as a chain of Slurm array jobs: `chain` says which jobs a store still needs, `submitting` hands them over."""
