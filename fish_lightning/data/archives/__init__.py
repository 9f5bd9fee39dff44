"""Download a data set, and unpack its zip file."""
