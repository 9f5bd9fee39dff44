"""Download data sets and unpack zip files."""
