"""A cache that is filled in this process, for benchmarks of later stages. Measures nothing."""

from tasks.cache.plan import CachePlan, encoder_digests
from tasks.dataset import Dataset
from tasks.events import Event, PackStored
from tasks.stages.trainer_protocol import TrainerRequest
from tasks.store import Store, cache_index_key
from worker.trainer import cache
from worker.trainer.event_pipe import StopSwitch
from worker.trainer.model_cache import ModelCache


def with_filled_cache(request: TrainerRequest) -> TrainerRequest:
    """Return a train request like this one, with all its cache entries stored."""
    store = Store(request.store_url)
    dataset = Dataset.model_validate_json(store.get(request.dataset_key))
    encoders = encoder_digests(request.training)
    plan = CachePlan(request.training, dataset, encoders)
    wanted = {"stage": "cache", "encoders": encoders, "cache_entries": tuple(plan.digests)}
    events: list[Event] = []
    cache.run(request.model_copy(update=wanted), events.append, StopSwitch(), ModelCache())
    stored = (event for event in events if isinstance(event, PackStored))
    packs = {digest: event.key for event in stored for digest in event.entries}
    key = cache_index_key(request.job_id)
    store.put(key, plan.index(packs).model_dump_json().encode())
    return request.model_copy(update={"stage": "train", "cache_index_key": key})
