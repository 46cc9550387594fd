-- Deletes the record of an ended job, its events and its deliveries. A tombstone takes the place of
-- the record: no other job gets the id, and `remains` is what the store still has. Returns 'deleted',
-- also if it was before, 'unknown', 'copied' while its results are copied, 'changed' if the job is
-- no longer what the caller has read, or the status of a job that has not ended.

-- include: job.lua

if is_deleted() then return 'deleted' end
if not exists() then return 'unknown' end
if not has_ended() then return get('status') end
if tonumber(redis.call('HGET', job_key, 'copied_until') or 0) > tonumber(now) then return 'copied' end
if get('attempt') ~= attempt or get('status') ~= status then return 'changed' end
local tenant, names = get('tenant') or '', redis.call('HKEYS', job_key)
set({status = 'deleted', deleted_at = now, remains = remains})
local kept = {status = true, tenant = true, deleted_at = true, remains = true}
for _, name in ipairs(names) do
  if not kept[name] then redis.call('HDEL', job_key, name) end
end
for _, sequence in ipairs(redis.call('HKEYS', deliveries_key)) do
  redis.call('ZREM', pending_key(tenant), job_id .. ' ' .. sequence)
end
schedule_tenant(tenant)
for _, key in ipairs({events_key, progress_key, deliveries_key}) do redis.call('DEL', key) end
local indexes = {
  keys.jobs, keys.tenant_jobs_prefix .. tenant, keys.due, keys.dead_letters,
  keys.pending_webhooks, keys.unstored_results}
for _, index in ipairs(indexes) do redis.call('ZREM', index, job_id) end
redis.call('ZREM', keys.renewals, job_id .. ' ' .. tenant)
redis.call('HDEL', keys.webhook_deliveries, job_id)
redis.call('ZADD', keys.deletions, now, job_id)
for _, key in ipairs({job_key, keys.deletions}) do renew_ttl(key) end
return 'deleted'
