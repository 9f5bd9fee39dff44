"""What ``/metrics`` tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """Counters of one server.

    Attributes:
        registry: of all below, and of the process (memory, CPU seconds).
        requests: by path and by code: ``ok``, or that of the error.
        seconds: from the start of a request to its answer.
        in_flight: requests in flight.
        images: answered.
        batch: images that the model computed together.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "fish_lightning_requests", "Requests for predictions", ("path", "code"), registry=self.registry
        )
        self.seconds = Histogram(
            "fish_lightning_request_seconds", "Seconds from request to answer", registry=self.registry
        )
        self.in_flight = Gauge("fish_lightning_requests_in_flight", "Requests in flight", registry=self.registry)
        self.images = Counter("fish_lightning_images", "Images answered", registry=self.registry)
        self.batch = Histogram(
            *("fish_lightning_batch_images", "Images that the model computed together"),
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self.registry,
        )
