-- Claims a tenant's first pending delivery that is due until `claimed_until`. Returns {job, sequence,
-- delivery, webhook}, or nothing if none is due. An attempt counts from its claim.

-- include: deliveries.lua

local claimed = {}
for _, member in ipairs(redis.call(
  'ZRANGEBYSCORE', pending_key(tenant), '-inf', now, 'LIMIT', 0, 100)) do
  local job_id, sequence = string.match(member, '^(.*) (%d+)$')
  local job_key = keys.job_prefix .. job_id
  local webhook = redis.call('HGET', job_key, 'webhook')
  local text = redis.call('HGET', job_key .. keys.deliveries_suffix, sequence)
  if webhook and text then
    local delivery = cjson.decode(text)
    delivery.attempts, delivery.tried_at, delivery.due_at = delivery.attempts + 1, now, nil
    text = cjson.encode(delivery)
    redis.call('HSET', job_key .. keys.deliveries_suffix, sequence, text)
    redis.call('ZADD', pending_key(tenant), claimed_until, member)
    claimed = {job_id, sequence, text, webhook}
    break
  end
  redis.call('ZREM', pending_key(tenant), member)  -- the job has expired
end
schedule_tenant(tenant)
return claimed
