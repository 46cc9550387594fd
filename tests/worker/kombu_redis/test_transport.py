from kombu.connection import Connection

from worker.kombu_redis.transport import Transport


def test_a_channel_keeps_one_client_for_each_pool(broker_url: str) -> None:
    with Connection(broker_url) as connection:  # type: ignore[no-untyped-call]
        connection.transport_cls = Transport
        channel = connection.default_channel
        first = channel._create_client()
        assert first.ping()
        assert channel._create_client() is first
        channel._disconnect_pools()
        assert channel._create_client() is not first
