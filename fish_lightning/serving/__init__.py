"""A trained model as a server: an app with its page, the batches behind it, and the same app on Ray Serve.

The path of an upload: ``app`` (token, requests in flight, time limit) → ``uploads`` (bytes in memory, within limits) →
``predictor`` (pixels from the header, decoding in threads) → ``batching`` (one thread computes batches of all requests)
→ JSON. Nothing uploaded is written to disk or logged.
"""
