-- Pending deliveries of jobs' own webhooks.

-- A tenant's, as `JOB SEQUENCE` by the time when each is due.
local function pending_key(tenant) return keys.tenant_webhooks_prefix .. tenant end

-- Orders the tenants by their first delivery that is due.
local function schedule_tenant(tenant)
  local first = redis.call('ZRANGE', pending_key(tenant), 0, 0, 'WITHSCORES')
  if first[2] then redis.call('ZADD', keys.webhook_tenants, first[2], tenant)
  else redis.call('ZREM', keys.webhook_tenants, tenant) end
end
