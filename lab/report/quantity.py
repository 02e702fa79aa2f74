"""What a metric is called and what it is measured in."""


def units(metric: str) -> str:
    """What a metric is measured in, as an axis says it."""
    if metric.endswith("loss") or metric == "forgetting":
        return "nats per token"
    if metric.endswith("bpb"):
        return "bits per byte"
    if metric.startswith("seconds"):
        return "s"
    return {"test_accuracy": "share", "peak_memory_bytes": "bytes"}.get(metric, "")


def axis(metric: str) -> str:
    """A metric's name and unit for an axis: `test loss (nats per token)`."""
    unit = units(metric)
    name = metric.replace("_", " ").replace("seconds.", "")
    return f"{name} ({unit})" if unit else name
