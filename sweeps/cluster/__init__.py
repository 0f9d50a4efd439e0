"""What is asked of SLURM or of this machine, and how."""
