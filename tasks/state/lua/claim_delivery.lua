-- Claims a tenant's first pending delivery that is due until `claimed_until`. Returns {job, sequence,
-- delivery, webhook}, or nothing if none is due. An attempt counts from its claim.

-- include: deliveries.lua

local claimed = {}
for _, member in ipairs(redis.call(
  'ZRANGEBYSCORE', pending_key(tenant), '-inf', now, 'LIMIT', 0, 100)) do
  local job_id, sequence = string.match(member, '^(.*) (%d+)$')
  local job_key = keys.job_prefix .. (job_id or '')
  local webhook = redis.pcall('HGET', job_key, 'webhook')
  local text = redis.pcall('HGET', job_key .. keys.deliveries_suffix, sequence or '')
  local is_read, delivery = pcall(cjson.decode, text)
  if type(webhook) == 'string' and is_read and type(delivery) == 'table'
    and tonumber(delivery.attempts) then
    delivery.attempts, delivery.tried_at, delivery.due_at = delivery.attempts + 1, now, nil
    text = cjson.encode(delivery)
    redis.call('HSET', job_key .. keys.deliveries_suffix, sequence, text)
    redis.call('ZADD', pending_key(tenant), claimed_until, member)
    claimed = {job_id, sequence, text, webhook}
    break
  end
  redis.call('ZREM', pending_key(tenant), member)  -- the job has expired, or cannot be read
end
schedule_tenant(tenant)
return claimed
