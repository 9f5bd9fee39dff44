"""The generated sample data set: classes, drawing, and the files on disk."""
