-- Records how an attempt to deliver ended. Returns the delivery's status, or an empty string if its
-- job has expired. A newer progress may have superseded it meanwhile.

-- include: deliveries.lua

local member = job_id .. ' ' .. sequence
local text = redis.call('HGET', deliveries_key, sequence)
if not text then
  redis.call('ZREM', pending_key(tenant), member)
  schedule_tenant(tenant)
  return ''
end
local delivery = cjson.decode(text)
local was_pending = delivery.status == 'pending'
delivery.tried_at, delivery.reason = now, reason
if was_pending or status == 'delivered' then delivery.status = status end
if delivery.status == 'pending' then
  delivery.due_at = due_at
  redis.call('ZADD', pending_key(tenant), 'XX', due_at, member)
elseif was_pending then
  redis.call('ZREM', pending_key(tenant), member)
  redis.call('HINCRBY', deliveries_key, 'pending', -1)
end
redis.call('HSET', deliveries_key, sequence, cjson.encode(delivery))
-- The log has dropped those of its time while it was pending.
local newest = tonumber(redis.call('HGET', deliveries_key, 'sequence')) or 0
if delivery.status ~= 'pending' and tonumber(sequence) <= newest - limits.deliveries then
  redis.call('HDEL', deliveries_key, sequence)
end
if is_gone == '1' then redis.call('HSET', deliveries_key, 'gone', '1') end
schedule_tenant(tenant)
return delivery.status
