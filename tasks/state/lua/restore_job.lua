-- Records a job that has ended and whose record was lost, with the positions that its events had.
-- Returns 1, or 0 if there is a record or the job was deleted. It lives for `rest_s` more, which count from the job's end.

-- include: job.lua

if is_deleted() or exists() then return 0 end
set(fields)
for i, event in ipairs(events) do
  local is_progress = cjson.decode(event).kind == 'progress'
  redis.call('XADD', is_progress and progress_key or events_key, positions[i],
    keys.event_field, event)
end
redis.call('ZADD', keys.jobs, get('created_at'), job_id)
redis.call('ZADD', keys.tenant_jobs_prefix .. get('tenant'), get('created_at'), job_id)
renew()
for _, key in ipairs({job_key, events_key, progress_key}) do redis.call('EXPIRE', key, rest_s) end
redis.call('ZADD', keys.renewals, time[1] + rest_s, job_id .. ' ' .. get('tenant'))
return 1
