-- Returns what decides which job is dispatched next: the queues that have room, each with its
-- tenants, oldest dispatch first; the tenants of all jobs in flight; and the fleet's hash. Returns
-- nothing if no queue has room: every start of a stage asks.

-- include: fleet.lua

local queues = {}
for _, queue in ipairs(redis.call('SMEMBERS', keys.tenant_queues)) do
  if has_room(queue) then
    table.insert(queues, {queue, redis.call('ZRANGE', tenants_key(queue), 0, -1)})
  end
end
if #queues == 0 then return {} end
return {queues, redis.call('HVALS', keys.in_flight), redis.call('HGETALL', keys.fleet)}
