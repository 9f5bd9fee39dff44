"""Runs of several processes: what they share, Slurm and torchrun, and jobs in processes of their own."""
