-- Claims a job's pending webhook until `claimed_until`. Returns the deliveries tried so far, or -1
-- if it is not due or another worker has claimed it. The count lives as long as the list.
local due_at = redis.call('ZSCORE', pending_webhooks, job_id)
if not due_at or tonumber(due_at) > tonumber(now) then return -1 end
redis.call('ZADD', pending_webhooks, claimed_until, job_id)
local deliveries = redis.call('HINCRBY', webhook_deliveries, job_id, 1)
redis.call('EXPIRE', webhook_deliveries, redis.call('TTL', pending_webhooks))
return deliveries - 1
