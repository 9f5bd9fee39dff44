"""After a multirun: all its jobs in one table, best first."""
