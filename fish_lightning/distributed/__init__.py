"""What the processes of one run share, what a cluster tells them, and jobs that start processes of their own."""
