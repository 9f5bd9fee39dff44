"""Many runs from one command: what Hydra's multirun is given besides its own sweeper and launcher."""
