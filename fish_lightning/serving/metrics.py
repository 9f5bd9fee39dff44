"""What ``/metrics`` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """Counters of one server.

    Attributes:
        registry: registry of all metrics below, and of the process's own (memory, CPU seconds).
        requests: counter of requests by path and by code: ``ok``, or that of the error.
        seconds: histogram of the seconds from the start of a request to its answer.
        in_flight: gauge of the requests in flight.
        images: counter of the images answered.
        batch: histogram of the number of images that the model computed together.
    """

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        ProcessCollector(registry=of)
        self.requests = Counter("fish_lightning_requests", "Requests for predictions", ("path", "code"), registry=of)
        self.seconds = Histogram("fish_lightning_request_seconds", "Seconds from request to answer", registry=of)
        self.in_flight = Gauge("fish_lightning_requests_in_flight", "Requests in flight", registry=of)
        self.images = Counter("fish_lightning_images", "Images answered", registry=of)
        words, sizes = "Images that the model computed together", (1, 2, 4, 8, 16, 32, 64, 128)
        self.batch = Histogram("fish_lightning_batch_images", words, buckets=sizes, registry=of)
