"""The generated sample data set: appearance of its classes, drawing, files on disk."""
