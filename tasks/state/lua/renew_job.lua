-- Renews the keys of a job that has not ended, or removes one that has expired from all indexes.
-- `entry` is its entry in the index of renewals.

-- include: job.lua

redis.call('ZREM', keys.renewals, entry)
if not exists() then
  local indexes = {
    keys.jobs, keys.tenant_jobs_prefix .. tenant, keys.due, keys.dead_letters,
    keys.pending_webhooks, keys.unstored_results}
  for _, index in ipairs(indexes) do redis.call('ZREM', index, job_id) end
  redis.call('HDEL', keys.in_flight, job_id)
elseif has_ended() then
  redis.call('ZADD', keys.renewals, time[1] + math.max(redis.call('TTL', job_key), 1), entry)
else
  renew()
end
