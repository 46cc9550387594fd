-- Makes a delivery due now, with all its attempts again; an empty `sequence` is every one that is
-- exhausted. Returns the numbers of those.

-- include: deliveries.lua

local chosen = {}
local all = redis.call('HGETALL', deliveries_key)
for i = 1, #all, 2 do
  local number = tonumber(all[i])
  local is_read, delivery = pcall(cjson.decode, all[i + 1])
  if number and is_read and type(delivery) == 'table' and (all[i] == sequence or sequence == '' and delivery.status == 'exhausted') then
    if delivery.status ~= 'pending' then redis.call('HINCRBY', deliveries_key, 'pending', 1) end
    delivery.status, delivery.attempts, delivery.due_at = 'pending', 0, now
    redis.call('HSET', deliveries_key, all[i], cjson.encode(delivery))
    redis.call('ZADD', pending_key(tenant), now, job_id .. ' ' .. all[i])
    table.insert(chosen, number)
  end
end
if #chosen > 0 then
  redis.call('HDEL', deliveries_key, 'gone')
  schedule_tenant(tenant)
  redis.call('EXPIRE', pending_key(tenant), ttl_s)
  redis.call('EXPIRE', keys.webhook_tenants, ttl_s)
end
return chosen
