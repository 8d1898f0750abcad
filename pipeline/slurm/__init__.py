"""Run stages as a chain of Slurm jobs. `chain` lists the jobs that a store still needs, `submitting` submits them."""
