"""Search for near-duplicates: which images are copies of one photograph.

:mod:`.search` is the entry point and keeps the result in a cache, :mod:`.grouping` chooses the pairs to compare and
joins copies into groups, :mod:`.similarity` compares two images.
"""
