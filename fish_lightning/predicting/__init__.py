"""Prediction of any number of files: rows are written in parts while it runs, and a stopped run can be resumed."""
