-- Records a job that has ended and whose record was lost. Returns 1, or 0 if there is a record. It
-- lives for `rest_s` more, which count from the job's end.

-- include: job.lua

if exists() then return 0 end
set(fields)
append_events(events)
redis.call('ZADD', keys.jobs, get('created_at'), job_id)
redis.call('ZADD', keys.tenant_jobs_prefix .. get('tenant'), get('created_at'), job_id)
renew()
for _, key in ipairs({job_key, events_key, progress_key}) do redis.call('EXPIRE', key, rest_s) end
redis.call('ZADD', keys.renewals, time[1] + rest_s, job_id .. ' ' .. get('tenant'))
write_hash()
return 1
