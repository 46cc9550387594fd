-- Records a job and sends it, or lets it wait. Returns 'exists', 'sent' or 'waiting', or the quota
-- that refuses it: 'quota:NAME'. 'deleted' if a job of this id was deleted: a message of it that comes
-- again must not run it again.

-- include: job.lua

if is_deleted() then return 'deleted' end
if exists() then return 'exists' end
local quota = refusing_quota(fields.tenant)
if quota then return 'quota:' .. quota end
set(fields)
set({created_at = now})
append_event(event)
redis.call('ZADD', keys.jobs, now, job_id)
redis.call('ZADD', keys.tenant_jobs_prefix .. get('tenant'), now, job_id)
add_usage(get('tenant'), {submitted = 1})
local outcome = send_or_wait(first_queue, message)
save()
return outcome
