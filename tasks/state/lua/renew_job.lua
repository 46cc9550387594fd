-- Renews the keys of a job that has not ended, or removes one that has expired from the lists. `entry`
-- is its entry in the index of renewals.

-- include: job.lua

redis.call('ZREM', keys.renewals, entry)
if not exists() then
  redis.call('ZREM', keys.jobs, job_id)
  redis.call('ZREM', keys.tenant_jobs_prefix .. tenant, job_id)
  redis.call('HDEL', keys.in_flight, job_id)
elseif has_ended() then
  redis.call('ZADD', keys.renewals, time[1] + math.max(redis.call('TTL', job_key), 1), entry)
else
  renew()
end
