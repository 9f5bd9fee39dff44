"""What a run says of itself when it is over: scores with their intervals, summary, plots and tables."""
